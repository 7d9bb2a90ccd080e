"""Load the recipe, and compute the digests of everything built from it. Reads files only.

A digest is the SHA-256 of canonical JSON of all that goes into a stage, with the digests of the stages it depends on:

    base    packages of the root filesystem       kernel  a VM's kernel, modules and tools
    rootfs  base + layout + workloads             docker  rootfs + the image's configuration
    vm      rootfs + kernel + the guest's definitions
"""

from __future__ import annotations

import json
import platform
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox.errors import ImageError, UnavailableError
from sandbox.state.data import data_dir

if TYPE_CHECKING:
    from hashlib import _Hash as Hash

RECIPE_FILE = "recipe.toml"

BUILDER = 1
"""Incremented when a change of the builder's code changes the result of the same recipe."""

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""Debian's architecture name by the kernel's machine name (uname(2))."""

SKIPPED = ("__pycache__", ".mypy_cache", ".ruff_cache")


class Form(StrEnum):
    """A form of the root filesystem, as an isolation level needs it."""

    ROOTFS = "rootfs"
    DOCKER = "docker"
    VM = "vm"


class Stage(StrEnum):
    """A stage of the build: the three forms, and the stages that they are built from, in the order of dependence."""

    BASE = "base"
    KERNEL = "kernel"
    ROOTFS = "rootfs"
    DOCKER = "docker"
    VM = "vm"


@dataclass(frozen=True, slots=True)
class Recipe:
    """The recipe file, checked.

    Attributes:
        suite: Debian release, such as "bookworm".
        epoch: seconds since the epoch; no file in an image is newer.
        architecture: Debian's name of this machine's architecture.
        rootfs: packages, exclude, compile.
        layout: user, workloads, mount_points, links, remove, files.
        docker: command, port, working_directory, environment.
        kernel: packages (including the kernel image's), remove.
    """

    suite: str
    epoch: int
    architecture: str
    rootfs: dict[str, Any]
    layout: dict[str, Any]
    docker: dict[str, Any]
    kernel: dict[str, Any]


def load(path: Path | None = None) -> Recipe:
    """Read the recipe.

    Raises:
        ImageError: it is missing, not TOML, or lacks a field.
        UnavailableError: it does not support this machine's architecture.
    """
    import tomllib  # a start has the digests (see `memo`), and reads no recipe

    try:
        path = path or data_dir("images") / RECIPE_FILE
        with path.open("rb") as file:
            raw = tomllib.load(file)
        architecture = debian_architecture()
        kernel = dict(raw["kernel"])
        image = kernel.pop("image")
        if architecture not in image:
            raise UnavailableError(
                f"the recipe has no kernel for {architecture}", "it supports " + ", ".join(sorted(image))
            )
        kernel["packages"] = [*kernel["packages"], image[architecture]]
        return Recipe(
            suite=str(raw["suite"]),
            epoch=int(raw["epoch"]),
            architecture=architecture,
            rootfs=raw["rootfs"],
            layout=raw["layout"],
            docker=raw["docker"],
            kernel=kernel,
        )
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise ImageError(f"the image recipe cannot be read: {error}", "reinstall sandbox") from error
    except (KeyError, TypeError, ValueError) as error:
        raise ImageError(f"the image recipe {path} is incomplete: {error}", "reinstall sandbox") from error


def debian_architecture() -> str:
    """Return Debian's name of this machine's architecture.

    Raises:
        UnavailableError: no recipe supports it.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise UnavailableError(
            f"images cannot be built for {machine}", "supported are " + ", ".join(sorted(ARCHITECTURES))
        )
    return ARCHITECTURES[machine]


def source_files(folder: Path) -> Iterator[tuple[str, Path, bool]]:
    """Yield the files of a data folder that go into an image, sorted by name.

    Bytecode caches and hidden files are left out: they are created by running from a checkout.

    Yields:
        The path relative to the folder with '/', the path, and whether it is executable.

    Raises:
        ImageError: the folder contains something else than files and folders, such as a symbolic link.
    """
    for path in sorted(folder.iterdir()):
        if path.name in SKIPPED or path.name.startswith(".") or path.suffix == ".pyc":
            continue
        mode = path.lstat().st_mode
        if stat.S_ISDIR(mode):
            for name, inner, executable in source_files(path):
                yield f"{path.name}/{name}", inner, executable
        elif stat.S_ISREG(mode):
            yield path.name, path, bool(mode & stat.S_IXUSR)
        else:
            raise ImageError(f"{path} is neither a file nor a directory", "images are built from those only")


def tree_digest(folder: Path) -> str:
    """Compute the SHA-256 of a folder's names, executable bits and contents, without times and bytecode.

    Raises:
        ImageError: a file cannot be read.
    """
    total = _sha256()
    try:
        for name, path, executable in source_files(folder):
            content = path.read_bytes()
            total.update(f"{len(name)} {name} {int(executable)} {len(content)} ".encode())
            total.update(content)
    except OSError as error:
        raise ImageError(f"{error.filename} cannot be read: {error.strerror}", "reinstall sandbox") from error
    return total.hexdigest()


def code_files() -> list[Path]:
    """Return the source files that determine the guest's disk and initramfs, as its data does."""
    makers = (Path(__file__).with_name(name) for name in ("vm.py",))
    return [maker for maker in makers if maker.exists()]


def digests(recipe: Recipe | None = None) -> dict[Stage, str]:
    """Compute the digest of every stage, from the recipe, the workloads and the guest's definitions as they are now.

    Raises:
        ImageError, UnavailableError: as for `load`, or a data folder is missing.
    """
    recipe = recipe or load()
    common = {"builder": BUILDER, "suite": recipe.suite, "epoch": recipe.epoch, "architecture": recipe.architecture}
    try:
        workloads = tree_digest(data_dir("workloads"))
        guest = tree_digest(data_dir("vm"))
        maker_digest = "".join(_sha256(path.read_bytes()).hexdigest() for path in code_files())
    except OSError as error:
        raise ImageError(f"the installation is incomplete: {error}", "reinstall sandbox") from error
    base = _digest(Stage.BASE, common, recipe.rootfs)
    kernel = _digest(Stage.KERNEL, common, recipe.kernel)
    rootfs = _digest(Stage.ROOTFS, base, recipe.layout, workloads)
    return {
        Stage.BASE: base,
        Stage.KERNEL: kernel,
        Stage.ROOTFS: rootfs,
        Stage.DOCKER: _digest(Stage.DOCKER, rootfs, recipe.docker),
        Stage.VM: _digest(Stage.VM, rootfs, kernel, guest, maker_digest),
    }


def _digest(*parts: Any) -> str:
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return _sha256(canonical.encode()).hexdigest()


def _sha256(content: bytes = b"") -> Hash:
    import hashlib  # it loads OpenSSL, see `load`

    return hashlib.sha256(content)
