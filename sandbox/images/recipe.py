"""The recipe as data, and the digests of everything that is made from it. Reads files; builds nothing.

A digest is the SHA-256 of canonical JSON of all that goes into a stage, with the digests of the stages below it:

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
"""Raised when the builder's code makes something else from the same recipe."""

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""The kernel's machine name (uname(2)) to Debian's architecture name."""

SKIPPED = ("__pycache__", ".mypy_cache", ".ruff_cache")


class Form(StrEnum):
    """What an isolation level can ask for."""

    ROOTFS = "rootfs"
    DOCKER = "docker"
    VM = "vm"


class Stage(StrEnum):
    """What is built and kept, in the order of dependence: the three forms, and what they are made from."""

    BASE = "base"
    KERNEL = "kernel"
    ROOTFS = "rootfs"
    DOCKER = "docker"
    VM = "vm"


@dataclass(frozen=True, slots=True)
class Recipe:
    """The recipe file, checked.

    Attributes:
        suite: Debian's release, such as "bookworm".
        epoch: seconds since the epoch; no file in an image is younger.
        architecture: Debian's name of this machine's.
        rootfs: packages, exclude, compile.
        layout: user, workloads, mount_points, links, remove, files.
        docker: command, port, working_directory, environment.
        kernel: packages (the kernel image's included), remove.
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
        UnavailableError: this machine's architecture is not in it.
    """
    import tomllib  # a start knows its digests (see `memo`), and reads no recipe

    try:
        path = path or data_dir("images") / RECIPE_FILE
        with path.open("rb") as file:
            raw = tomllib.load(file)
        architecture = debian_architecture()
        kernel = dict(raw["kernel"])
        image = kernel.pop("image")
        if architecture not in image:
            raise UnavailableError(
                f"the recipe has no kernel for {architecture}", "it knows " + ", ".join(sorted(image))
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
        raise ImageError(f"the image recipe {path} is not complete: {error}", "reinstall sandbox") from error


def debian_architecture() -> str:
    """Debian's name of this machine's architecture.

    Raises:
        UnavailableError: it is none that a recipe is written for.
    """
    machine = platform.machine()
    if machine not in ARCHITECTURES:
        raise UnavailableError(
            f"no image can be built for a {machine} machine", "one of " + ", ".join(sorted(ARCHITECTURES))
        )
    return ARCHITECTURES[machine]


def source_files(folder: Path) -> Iterator[tuple[str, Path, bool]]:
    """The files of a data folder that go into an image, sorted by name.

    Bytecode caches and hidden files are left out: they are by-products of running from a checkout.

    Yields:
        The path relative to the folder with '/', the path, and whether it is executable.

    Raises:
        ImageError: the folder has something that is neither a file nor a folder, such as a symbolic link.
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
            raise ImageError(f"{path} is neither a file nor a folder", "an image takes only those")


def tree_digest(folder: Path) -> str:
    """The SHA-256 of a folder's names, executable bits and bytes; not of times, nor of bytecode.

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
    """The guest's disk and initramfs are as much a matter of the code that makes them as of its data."""
    makers = (Path(__file__).with_name(name) for name in ("vm.py",))
    return [maker for maker in makers if maker.exists()]


def digests(recipe: Recipe | None = None) -> dict[Stage, str]:
    """The digest of every stage as the recipe, the workloads and the guest's definitions are now.

    Raises:
        ImageError, UnavailableError: as `load`, or a data folder is missing.
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
    import hashlib  # loads all of OpenSSL, see `load`

    return hashlib.sha256(content)
