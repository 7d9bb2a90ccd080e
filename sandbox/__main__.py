"""The command `sandbox`, also as `python -m sandbox`: what has to be set before anything is imported."""

import gc
from typing import NoReturn

_ALLOCATIONS = 50_000
"""Collect garbage after so many more objects were made than freed: by default, after 700, a third of a short command's
time goes into looking through modules that were just imported and are there to stay."""


def main() -> NoReturn:
    """Entry point of the console script."""
    gc.set_threshold(_ALLOCATIONS, 10, 10)
    from sandbox.cli import main as command

    command()


if __name__ == "__main__":
    main()
