"""Starts a server: `python -m workloads reactor --port 8080`, or this file as a script."""

import sys

if not __package__:
    # As a script under `-I -S`, the search path has the standard library alone. This file is compiled at each
    # start (scripts have no .pyc), so it stays small.
    sys.path.insert(0, __file__.rpartition("/workloads/")[0] or "..")
    sys.path.append("/usr/lib/python3/dist-packages")  # Debian's httptools

from workloads.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
