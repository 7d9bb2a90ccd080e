"""Check the entries of an archive from a sandbox: names, links, modes and sizes. Pure: it touches no file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

from sandbox.copying.reader import MAX_NAME, Entry, HostileError, Kind, Reader

MAX_COMPONENT = 255
"""Bytes in one part of a path: NAME_MAX, limits.h(0p)."""
PERMISSIONS = 0o777
"""The mode bits that are kept: not set-user-ID, set-group-ID and sticky."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """Bounds on what a sandbox may send.

    Attributes:
        size: bytes of all files together.
        entries: number of files, directories and links.
        depth: depth of nested directories. Removing them takes an open descriptor for each level.
    """

    size: int = 4 * 1024**3
    entries: int = 200_000
    depth: int = 128


DEFAULT_BOUNDS = Bounds()


@dataclass(frozen=True, slots=True)
class Member:
    """An entry that passed the checks.

    Attributes:
        path: parts of its name below the target, none of them "", "." or ".."; empty for the target itself.
        kind: file, directory or link.
        mode: permission bits within PERMISSIONS.
        mtime: seconds since the epoch.
        size: bytes of content.
        link: target of a symbolic link.
        source: of a hard link: the path of an earlier file.
    """

    path: tuple[str, ...]
    kind: Kind
    mode: int
    mtime: int
    size: int
    link: str = ""
    source: tuple[str, ...] = ()


def members(reader: Reader, bounds: Bounds = DEFAULT_BOUNDS) -> Iterator[Member]:
    """Yield the entries of an archive, each checked by itself and against those before it.

    An entry must come after its directory and only once; a hard link must refer to a file of this archive, and a
    symbolic link must stay below the target.

    Raises:
        HostileError: an entry breaks a rule; the message shows its name.
    """
    seen: dict[tuple[str, ...], Kind] = {}
    size = 0
    for entry in reader:
        path = _parts(entry.name)
        shown = repr("/".join(path) or ".")
        if path in seen:
            raise HostileError(f"the sandbox sent {shown} twice")
        if path and seen.get(path[:-1]) is not Kind.DIRECTORY and len(path) > 1:
            raise HostileError(f"the sandbox sent {shown} without the directory that it is in")
        if not path and entry.kind is not Kind.DIRECTORY:
            raise HostileError(f"the sandbox sent a {entry.kind} without a name")
        size += entry.size
        if size > bounds.size:
            raise HostileError(f"the sandbox sent more than {bounds.size} bytes", "--max-size allows more")
        if len(seen) >= bounds.entries:
            raise HostileError(f"the sandbox sent more than {bounds.entries} files")
        if len(path) > bounds.depth:
            raise HostileError(f"the sandbox sent directories more than {bounds.depth} deep")
        yield _member(entry, path, seen)
        seen[path] = entry.kind


def _member(entry: Entry, path: tuple[str, ...], seen: dict[tuple[str, ...], Kind]) -> Member:
    link = ""
    source: tuple[str, ...] = ()
    if entry.kind is Kind.SYMLINK:
        link = os.fsdecode(entry.link)
        _check_symlink(link, path)
    elif entry.kind is Kind.HARDLINK:
        source = _parts(entry.link)
        if seen.get(source) is not Kind.FILE:
            raise HostileError(
                f"the sandbox sent a hard link, {_shown(path)}, to {_shown(source)}, not an earlier file"
            )
    return Member(path, entry.kind, entry.mode & PERMISSIONS, entry.mtime, entry.size, link, source)


def _parts(name: bytes) -> tuple[str, ...]:
    """Split a name into its parts, without the leading "./" and the trailing slash that tar writes.

    Raises:
        HostileError: the name is absolute, empty, too long, or has an empty part or "..".
    """
    if not name or name.startswith(b"/"):
        raise HostileError(f"the sandbox sent {os.fsdecode(name)!r}, a name that is not below the target")
    if len(name) >= MAX_NAME:
        raise HostileError(f"the sandbox sent a name of {len(name)} bytes, longer than a path can be")
    parts = [part for part in name.removesuffix(b"/").split(b"/") if part != b"."]
    if any(part in (b"", b"..") or len(part) > MAX_COMPONENT or b"\0" in part for part in parts):
        raise HostileError(f"the sandbox sent {_clipped(name)}, a name that is not allowed")
    return tuple(os.fsdecode(part) for part in parts)


def _check_symlink(link: str, path: tuple[str, ...]) -> None:
    """Refuse a symbolic link that could lead out of the target, whatever the other links are.

    ".." is allowed only at the beginning, where it leaves real directories. After a name it would leave the directory
    that the name resolves to, and the name may be a link itself: links that look harmless one by one could escape
    together.

    Raises:
        HostileError: it could.
    """
    parts = [part for part in link.split("/") if part not in ("", ".")]
    climbs = 0
    while climbs < len(parts) and parts[climbs] == "..":
        climbs += 1
    if (
        not link
        or "\0" in link
        or len(os.fsencode(link)) >= MAX_NAME
        or link.startswith("/")
        or ".." in parts[climbs:]
        or climbs > len(path) - 1
    ):
        raise HostileError(
            f"the sandbox sent a symbolic link, {_shown(path)}, that leads out of what is copied: {_clipped(link)}"
        )


def _shown(path: tuple[str, ...]) -> str:
    return _clipped("/".join(path) or ".")


def _clipped(name: str | bytes) -> str:
    text = os.fsdecode(name)
    return repr(text if len(text) <= 80 else text[:77] + "...")
