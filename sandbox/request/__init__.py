"""Turn command-line options and API arguments into a SandboxSpec, or refuse them with a one-line error."""
