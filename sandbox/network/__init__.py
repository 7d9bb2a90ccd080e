"""The lab network that all sandboxes share, the ports of it that are published, and waiting for a first reply."""
