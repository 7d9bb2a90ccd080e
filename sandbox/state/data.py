"""Find the data that ships with the package: the image recipe, the VM's definitions, the workloads."""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]


def data_dir(name: str) -> Path:
    """Return the path of the folder `images`, `vm` or `workloads`.

    In an installed wheel it is below the package, in a checkout beside it.

    Raises:
        FileNotFoundError: the installation is incomplete.
    """
    for candidate in (_PACKAGE / "_data" / name, _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"the package's data folder {name!r} is missing: reinstall sandbox")
