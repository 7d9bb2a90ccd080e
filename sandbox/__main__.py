"""The command `sandbox`, also as `python -m sandbox`. It configures the interpreter before it imports the rest."""

import gc
from typing import NoReturn

_ALLOCATIONS = 50_000
"""Start a garbage collection once so many more objects were allocated than freed. With the default of 700, a short
command would spend a third of its time on traversing newly imported modules, which are never freed."""


def main() -> NoReturn:
    """Run the command line; the entry point of the console script."""
    gc.set_threshold(_ALLOCATIONS, 10, 10)
    from sandbox.cli import main as command

    command()


if __name__ == "__main__":
    main()
