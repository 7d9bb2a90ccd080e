"""Turn what a user typed into a SandboxSpec, or refuse it with one line."""
