"""Bind mounts of a local sandbox, including the files of its application.

If the root filesystem lacks a mount target, the target is created in a skeleton: a tree of empty directories and files
that is laid over the image. Most sandboxes need none, and use the image itself.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from sandbox.errors import EngineError, SpecError
from sandbox.isolation.base import writable
from sandbox.kernel import trees
from sandbox.kernel.rootfs import Layout
from sandbox.kernel.trees import Tree
from sandbox.spec import APP_DIR, Mount, SandboxSpec
from sandbox.state.record import Record

SKELETON = "skeleton"
"""The skeleton's name in the sandbox's directory."""

_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a path inside a sandbox
_OWN = ("/dev", "/proc", "/sys")
"""Directories that the sandbox's set-up fills itself."""


def check(spec: SandboxSpec) -> None:
    """Refuse mount targets that the sandbox's set-up needs itself.

    Raises:
        SpecError
    """
    taken = {"/", *(one.path for one in writable(spec)), _SHARED_MEMORY}
    if spec.app:
        taken.add(APP_DIR)
    for mount in spec.mounts:
        if mount.target in taken:
            raise SpecError(f"-v {mount.source}:{mount.target}: {mount.target} is reserved", "such as /data")
        taken.add(mount.target)
        inside_own = any(mount.target == own or _is_below(mount.target, own) for own in _OWN)
        if inside_own and not _is_below(mount.target, _SHARED_MEMORY):
            raise SpecError(
                f"-v {mount.source}:{mount.target}: nothing can be mounted in {', '.join(_OWN)}", "such as /data"
            )


@contextmanager
def layout(spec: SandboxSpec, record: Record, image: str) -> Iterator[Layout]:
    """Yield the layout to be mounted on the root filesystem; its descriptors are open within the block.

    Args:
        spec: with the requested mounts.
        record: says where the application's files and the skeleton are.
        image: the directory of the root filesystem.

    Raises:
        SpecError: a source or target is missing or of the wrong kind.
        EngineError: the kernel refuses.
    """
    mounts = list(spec.mounts)
    if spec.app:
        mounts.append(Mount(str(record.app_path), APP_DIR, read_only=True))
    if not mounts:
        yield Layout(writable(spec))
        return
    made: list[Tree] = []
    try:
        # A mount inside another one comes after it.
        for mount in sorted(mounts, key=lambda one: (len(PurePosixPath(one.target).parts), one.target)):
            made.append(_copy(mount, spec))
        skeleton = record.directory / SKELETON
        needed = [_place(tree, made, mounts, image, skeleton) for tree in made]
        yield Layout(writable(spec), str(skeleton) if any(needed) else None, tuple(made))
    finally:
        trees.close(made)


def _copy(mount: Mount, spec: SandboxSpec) -> Tree:
    said = f"-v {mount.source}:{mount.target}"
    fresh = any(_is_below(mount.target, one.path) for one in writable(spec)) or _is_below(mount.target, _SHARED_MEMORY)
    try:
        return trees.copy(mount.source, mount.target, read_only=mount.read_only, fresh=fresh)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise SpecError(f"{said}: the path contains a symbolic link", "use the path that it leads to") from None
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise SpecError(f"{said}: {mount.source} does not exist", "use a directory or file of this host") from None
        if error.errno == errno.ENOSYS:
            raise EngineError(f"{said}: mounts need Linux 5.12 or later") from None
        raise EngineError(f"{said}: {error.strerror}") from error


def _place(tree: Tree, all_trees: Sequence[Tree], mounts: Sequence[Mount], image: str, skeleton: Path) -> bool:
    """Make sure that a mount target will exist; return whether the skeleton is needed for that."""
    if tree.fresh:
        return False
    around = [other for other in all_trees if _is_below(tree.target, other.target)]
    if around:
        outer = max(around, key=lambda other: len(other.target))
        source = next(mount.source for mount in mounts if mount.target == outer.target)
        below = tree.target[len(outer.target) :]
        _expect(Path(source + below), tree, f"in {source}, which is mounted at {outer.target}")
        return False
    parts = PurePosixPath(tree.target).parts[1:]
    for count in range(1, len(parts) + 1):
        there = Path(image, *parts[:count])
        try:
            found = there.lstat()
        except FileNotFoundError:
            _make(skeleton, Path(image), parts, directory=tree.directory)
            return True
        if stat.S_ISLNK(found.st_mode):
            raise SpecError(
                f"the mount target {tree.target} leads through the symbolic link /{'/'.join(parts[:count])}",
                f"use the path that it leads to, {os.readlink(there)}",
            )
        if count < len(parts) and not stat.S_ISDIR(found.st_mode):
            raise SpecError(f"the mount target {tree.target} leads through a file", "such as /data")
    _expect(there, tree, "in the root filesystem")
    return False


def _expect(path: Path, tree: Tree, where: str) -> None:
    try:
        found = path.lstat()
    except OSError:
        raise SpecError(f"the mount target {tree.target} does not exist {where}", "create it first") from None
    if stat.S_ISDIR(found.st_mode) != tree.directory:
        kinds = ("a directory", "a file")
        here, wanted = kinds if tree.directory else kinds[::-1]
        raise SpecError(f"the mount target {tree.target} is {wanted} {where}, its source is {here}", "the same kind")


def _make(skeleton: Path, image: Path, parts: tuple[str, ...], *, directory: bool) -> None:
    """Create empty directories down to the target, with the modes of the image's directories, which they will hide."""
    skeleton.mkdir(mode=0o755, exist_ok=True)
    skeleton.chmod(0o755)
    for count in range(1, len(parts) + (1 if directory else 0)):
        here = skeleton.joinpath(*parts[:count])
        here.mkdir(exist_ok=True)
        model = image.joinpath(*parts[:count])
        here.chmod(stat.S_IMODE(model.stat().st_mode) if model.is_dir() else 0o755)
    if not directory:
        target = skeleton.joinpath(*parts)
        target.touch()
        target.chmod(0o644)


def _is_below(path: str, directory: str) -> bool:
    return path.startswith(directory.rstrip("/") + "/")
