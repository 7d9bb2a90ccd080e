"""Levels `container` and `gvisor`: Docker, with its default runtime or with gVisor's."""
