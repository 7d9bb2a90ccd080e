"""Choose where a copy goes on the host, and move it there by rename(2), without following links."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from sandbox.copying.reader import HostileError
from sandbox.copying.unpack import TREE
from sandbox.errors import EngineError, SpecError

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Place:
    """The destination of a copy on the host.

    Attributes:
        parent: an existing directory.
        name: name of the copy in it; empty to put a directory's content into `parent` itself.
    """

    parent: Path
    name: str

    @property
    def path(self) -> Path:
        """The path of the copy."""
        return self.parent / self.name


def choose(destination: str, source: str, *, folder: bool) -> Place:
    """Choose where a copy of `source` goes, by the rules of docker-cp(1).

    Into an existing directory, under its own name; only its content if `source` ends in "/.". Otherwise the destination
    is the copy's new name.

    Args:
        destination: as the user typed it.
        source: as the user typed it, without the sandbox.
        folder: whether the source is a directory.

    Raises:
        SpecError: the directory of the destination does not exist, or the destination has the wrong type.
    """
    path = Path(destination)
    # With a trailing slash, which Path drops, lstat(2) follows a link; then the user asked for it.
    slash = destination.endswith(("/", "/."))
    try:
        mode = path.stat().st_mode if slash else path.lstat().st_mode
    except FileNotFoundError:
        mode = 0
    except OSError as error:
        raise SpecError(f"{destination}: {error.strerror}", "give a directory, or a file in one") from None
    if stat.S_ISLNK(mode):
        raise SpecError(f"{destination} is a symbolic link, which is not followed", "give its target instead")
    if stat.S_ISDIR(mode):
        return Place(path, "" if folder and ends_in_content(source) else base(source))
    if slash and not (folder and mode == 0):
        what = "is not a directory" if mode else "does not exist"
        raise SpecError(f"{destination} {what}", "create the directory first, or leave out the slash")
    if mode and (folder or not stat.S_ISREG(mode)):
        raise SpecError(
            f"{destination} exists and is not a {'directory' if folder else 'regular file'}", "choose another name"
        )
    if not path.parent.is_dir():
        raise SpecError(f"{destination}: there is no directory {path.parent}", "create it first")
    return Place(path.parent, path.name)


def ends_in_content(source: str) -> bool:
    """Return whether a path ends in "/.", which means the content of a directory in docker-cp(1)."""
    return source == "." or source.endswith("/.")


def base(source: str) -> str:
    """Return the last part of a path inside; "root" for the root directory."""
    parts = [part for part in source.split("/") if part not in ("", ".")]
    return parts[-1] if parts else "root"


def move(staged: int, parent: int, place: Place, links: list[tuple[str, ...]]) -> None:
    """Move a staged copy to its destination. Conflicts are found before anything is moved.

    Args:
        staged: descriptor of the staging directory.
        parent: descriptor of `place.parent`.
        place: the destination.
        links: the symbolic links in the copy.

    Raises:
        SpecError: a directory would replace a file, or a file a directory.
        HostileError: a copied link would lead out through a link that existed before; it has been removed again.
        EngineError: only a part could be moved; the message says so.
    """
    if place.name:
        source, source_name, target, target_name = staged, TREE, parent, place.name
        _check(source, source_name, target, target_name, place.path)
        try:
            merged = _move(source, source_name, target, target_name)
        except OSError as error:
            raise _partly(place.path, error) from error
    else:
        merged = True
        tree = os.open(TREE, _FOLDER, dir_fd=staged)
        try:
            for name in sorted(os.listdir(tree)):
                _check(tree, name, parent, name, place.path / name)
            for name in sorted(os.listdir(tree)):
                _move(tree, name, parent, name)
        except OSError as error:
            raise _partly(place.path, error) from error
        finally:
            os.close(tree)
    if merged:
        _check_links(place.path, links)


def _partly(path: Path, error: OSError) -> EngineError:
    return EngineError(f"only a part was copied to {path}: {error.strerror}: {error.filename}")


def _mode(folder: int, name: str) -> int:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode
    except FileNotFoundError:
        return 0


def _check(source: int, source_name: str, target: int, target_name: str, shown: Path) -> None:
    """Refuse a move that would replace a directory by a file, or a file by a directory.

    Raises:
        SpecError: it would.
    """
    there = _mode(target, target_name)
    if not there:
        return
    if not stat.S_ISDIR(_mode(source, source_name)):
        if stat.S_ISDIR(there):
            raise SpecError(f"{shown} is a directory and cannot be replaced by a file", "nothing was copied")
        return
    if not stat.S_ISDIR(there):
        raise SpecError(f"{shown} is not a directory and cannot be replaced by one", "nothing was copied")
    inner_source = os.open(source_name, _FOLDER, dir_fd=source)
    try:
        inner_target = os.open(target_name, _FOLDER, dir_fd=target)
        try:
            for name in os.listdir(inner_source):
                _check(inner_source, name, inner_target, name, shown / name)
        finally:
            os.close(inner_target)
    finally:
        os.close(inner_source)


def _move(source: int, source_name: str, target: int, target_name: str) -> bool:
    """Rename the source; if both are directories, merge their content. Return whether they were merged."""
    if not (stat.S_ISDIR(_mode(source, source_name)) and stat.S_ISDIR(_mode(target, target_name))):
        os.rename(source_name, target_name, src_dir_fd=source, dst_dir_fd=target)
        return False
    inner_source = os.open(source_name, _FOLDER, dir_fd=source)
    try:
        inner_target = os.open(target_name, _FOLDER, dir_fd=target)
        try:
            for name in os.listdir(inner_source):
                _move(inner_source, name, inner_target, name)
        finally:
            os.close(inner_target)
    finally:
        os.close(inner_source)
    return True


def _check_links(target: Path, links: list[tuple[str, ...]]) -> None:
    """Remove a copied link that leads out of the target through a link that existed before.

    Raises:
        HostileError: there was one.
    """
    real = os.path.realpath(target)
    for link in links:
        path = target.joinpath(*link)
        if os.path.commonpath((real, os.path.realpath(path))) != real:
            path.unlink()
            raise HostileError(
                f"{path} led out of {target} through a link that existed before, so it was removed",
                "the rest was copied",
            )
