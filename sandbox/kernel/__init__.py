"""The kernel's interfaces, one thin wrapper each. Plain OSError; no knowledge of the rest of sandbox."""
