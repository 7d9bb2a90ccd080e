"""The list of system calls that a sandbox may make, compiled to what the kernel and Docker read."""
