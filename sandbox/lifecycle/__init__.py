"""The life of a sandbox, from its start to its removal: what the command line and the Python interface call."""
