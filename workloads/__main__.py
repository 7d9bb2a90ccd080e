"""Start a server: `python -m workloads reactor --port 8080`, or this file as a script."""

import sys

if not __package__:
    # When run as a script under `-I -S`, the search path has only the standard library. Scripts have no .pyc, so this
    # file is compiled at each start, and is kept small.
    sys.path.insert(0, __file__.rpartition("/workloads/")[0] or "..")
    sys.path.append("/usr/lib/python3/dist-packages")  # Debian's httptools

from workloads.command import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
