"""From the stage to where the user wants it: by rename(2) within one file system, following no link."""

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
    """Where a copy goes on the host.

    Attributes:
        parent: a directory that is there.
        name: of the copy in it; empty to put a directory's content right into `parent`.
    """

    parent: Path
    name: str

    @property
    def path(self) -> Path:
        """The copy itself."""
        return self.parent / self.name


def choose(destination: str, source: str, *, folder: bool) -> Place:
    """Where a copy of `source` goes, by the rules of docker-cp(1).

    A directory that is there takes the copy in under its own name, or its content where `source` ends in "/.". Else
    the destination is the copy's new name.

    Args:
        destination: as the user gave it.
        source: as the user gave it, without the sandbox.
        folder: whether what is copied is a directory.

    Raises:
        SpecError: its directory is not there, or it is what it must not be.
    """
    path = Path(destination)
    # Path drops a trailing slash, by which lstat(2) follows the link: then the user has said so.
    slash = destination.endswith(("/", "/."))
    try:
        mode = path.stat().st_mode if slash else path.lstat().st_mode
    except FileNotFoundError:
        mode = 0
    except OSError as error:
        raise SpecError(f"{destination}: {error.strerror}", "name a directory, or a file in one") from None
    if stat.S_ISLNK(mode):
        raise SpecError(f"{destination} is a symbolic link, which is not followed", "name what it leads to")
    if stat.S_ISDIR(mode):
        return Place(path, "" if folder and ends_in_content(source) else base(source))
    if slash and not (folder and mode == 0):
        what = "not a directory" if mode else "no directory that is there"
        raise SpecError(f"{destination} is {what}", "make it first, or leave out the slash")
    if mode and (folder or not stat.S_ISREG(mode)):
        raise SpecError(
            f"{destination} is there and is no {'directory' if folder else 'regular file'}", "choose another name"
        )
    if not path.parent.is_dir():
        raise SpecError(f"{destination}: there is no directory {path.parent}", "make it first")
    return Place(path.parent, path.name)


def ends_in_content(source: str) -> bool:
    """Whether a path ends in "/.", by which docker-cp(1) means a directory's content."""
    return source == "." or source.endswith("/.")


def base(source: str) -> str:
    """The last part of a path inside; "root" for the whole of it."""
    parts = [part for part in source.split("/") if part not in ("", ".")]
    return parts[-1] if parts else "root"


def move(staged: int, parent: int, place: Place, links: list[tuple[str, ...]]) -> None:
    """Put what the stage holds in its place. What is in the way is found before anything is moved.

    Args:
        staged: descriptor of the stage.
        parent: descriptor of the place's directory.
        place: where to.
        links: symbolic links in it.

    Raises:
        SpecError: something else has one of the names.
        HostileError: a symbolic link would lead out by way of a link that was there; it has been removed again.
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
    """Find what is in the way.

    Raises:
        SpecError: a directory where a file goes, or the other way round.
    """
    there = _mode(target, target_name)
    if not there:
        return
    if not stat.S_ISDIR(_mode(source, source_name)):
        if stat.S_ISDIR(there):
            raise SpecError(f"{shown} is a directory, and a file goes there", "nothing was copied")
        return
    if not stat.S_ISDIR(there):
        raise SpecError(f"{shown} is no directory, and a directory goes there", "nothing was copied")
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
    """Rename it, or, where both are directories, what is in it. Returns whether anything was merged."""
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
    """Remove copied links that lead out of the target by way of a link that had been there.

    Raises:
        HostileError: there was one.
    """
    real = os.path.realpath(target)
    for link in links:
        path = target.joinpath(*link)
        if os.path.commonpath((real, os.path.realpath(path))) != real:
            path.unlink()
            raise HostileError(
                f"{path} led out of {target} by way of a link that was there; it was removed", "the rest was copied"
            )
