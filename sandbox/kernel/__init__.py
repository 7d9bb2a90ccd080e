"""Thin wrappers of kernel interfaces. They raise OSError and import nothing else of sandbox."""
