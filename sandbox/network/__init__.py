"""The lab network that all sandboxes share, published ports, and the wait for a first reply."""
