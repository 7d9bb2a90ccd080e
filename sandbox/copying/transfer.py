"""Copy files, step by step: probe the path inside, choose the destination, run tar inside, transfer the stream."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from sandbox.copying.pack import Note, Packer
from sandbox.copying.piped import Piped
from sandbox.copying.place import base, choose, ends_in_content, move
from sandbox.copying.reader import HostileError, Kind, Reader
from sandbox.copying.unpack import Archive, Unpacker, stage
from sandbox.copying.validation import DEFAULT_BOUNDS, Bounds, members
from sandbox.errors import EngineError, SpecError

if TYPE_CHECKING:
    from sandbox.isolation.base import Sandbox

PROBE_TIMEOUT = 120.0
"""Seconds for a probe inside; a busy emulated VM is slow."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_WRITABLE = "copy below /tmp, which is writable at every level"

# Prints the type of a path, that of its parent, and its resolved name. "test -w" fails on a read-only mount.
_PROBE_SCRIPT = r"""
kind() {
  if [ -L "$1" ]; then echo link
  elif [ -d "$1" ]; then if [ -w "$1" ]; then echo directory w; else echo directory r; fi
  elif [ -f "$1" ]; then if [ -w "$1" ]; then echo file w; else echo file r; fi
  elif [ -e "$1" ]; then echo special
  else echo nothing; fi
}
path=$1
if [ "$2" = follow ] && [ -e "$path" ]; then path=$(readlink -f -- "$path"); fi
kind "$path"
kind "$(dirname -- "$path")/."
printf %s "$path"
"""


class PathKind(StrEnum):
    """The type of a path inside."""

    LINK = "link"
    DIRECTORY = "directory"
    FILE = "file"
    SPECIAL = "special"
    NOTHING = "nothing"


class PathInfo(NamedTuple):
    """A path inside, as the sandbox reports it.

    Attributes:
        kind: type of the path.
        writable: whether the sandbox's user can write to it.
        parent: type of its parent.
        parent_writable: whether the sandbox's user can write to the parent.
        path: the path, with links followed if that was asked for.
    """

    kind: PathKind
    writable: bool
    parent: PathKind
    parent_writable: bool
    path: str


def probe(sandbox: Sandbox, path: str, *, follow: bool = False) -> PathInfo:
    """Find out the type of a path inside.

    Raises:
        EngineError: the sandbox did not reply in time, or not as expected.
    """
    name = sandbox.record.name
    argv = ["/bin/sh", "-c", _PROBE_SCRIPT, "probe", path, "follow" if follow else ""]
    try:
        result = sandbox.exec(argv, timeout=PROBE_TIMEOUT)
    except TimeoutError:
        raise EngineError(f"{name} did not reply within {PROBE_TIMEOUT:.0f} s") from None
    try:
        first, second, found = os.fsdecode(result.stdout).split("\n", 2)
        what, _, writable = first.partition(" ")
        parent, _, parent_writable = second.partition(" ")
        return PathInfo(PathKind(what), writable == "w", PathKind(parent), parent_writable == "w", found)
    except ValueError:
        raise EngineError(f"{name} gave no valid reply on what {path} is") from None


def _absolute(path: str) -> str:
    """Make a path inside absolute: a relative one starts at the root, as in docker-cp(1)."""
    if not path or "\0" in path:
        raise SpecError(f"{path!r} is not a path", "write SANDBOX:PATH, such as web:/tmp/report")
    return path if path.startswith("/") else f"/{path}"


def copy_out(
    sandbox: Sandbox, source: str, destination: str, *, follow: bool = False, bounds: Bounds = DEFAULT_BOUNDS
) -> int:
    """Copy a file or directory of a sandbox to the host. If that fails, nothing of it is left.

    Args:
        sandbox: the sandbox to copy from.
        source: path inside; with "/." at its end, the content of a directory.
        destination: path on the host, by the rules of docker-cp(1).
        follow: if the source is a symbolic link, copy its target.
        bounds: the most that the sandbox may send.

    Returns:
        Bytes of content.

    Raises:
        SpecError: a path is wrong.
        HostileError: the sandbox sent something that is not allowed.
        EngineError: tar failed, or the sandbox ended.
        OSError: the copy cannot be written on the host.
    """
    found = _source(sandbox, source, follow=follow)
    folder = found.kind is PathKind.DIRECTORY
    place = choose(destination, _absolute(source), folder=folder)
    parent = os.open(place.parent, _FOLDER)
    try:
        with stage(parent) as staged:
            unpacker = Unpacker(staged)
            _receive(sandbox, found, unpacker, bounds)
            unpacker.finish()
            move(staged, parent, place, unpacker.links)
            return unpacker.size
    finally:
        os.close(parent)


def export(
    sandbox: Sandbox, source: str, descriptor: int, *, follow: bool = False, bounds: Bounds = DEFAULT_BOUNDS
) -> int:
    """Write a file or directory of a sandbox to a descriptor as an archive, checked as by `copy_out`.

    Returns:
        Bytes of content.

    Raises:
        SpecError, HostileError, EngineError, OSError: as for `copy_out`.
    """
    found = _source(sandbox, source, follow=follow)
    folder = found.kind is PathKind.DIRECTORY
    path = _absolute(source)
    archive = Archive(descriptor, "" if folder and ends_in_content(path) else base(path))
    _receive(sandbox, found, archive, bounds)
    archive.finish()
    return archive.size


def _source(sandbox: Sandbox, source: str, *, follow: bool) -> PathInfo:
    found = probe(sandbox, _absolute(source), follow=follow)
    if found.kind is PathKind.NOTHING:
        raise SpecError(f"there is no {_absolute(source)} in {sandbox.record.name}", "or its user may not access it")
    if found.kind is PathKind.LINK:
        raise SpecError(f"{source} in {sandbox.record.name} is a symbolic link", "-L copies its target")
    if found.kind is PathKind.SPECIAL:
        raise SpecError(f"{source} in {sandbox.record.name} is neither a file nor a directory")
    return found


def _receive(sandbox: Sandbox, found: PathInfo, sink: Unpacker | Archive, bounds: Bounds) -> None:
    """Run tar inside and add its entries to the sink. A single file becomes the sink's top, as a directory does."""
    folder = found.kind is PathKind.DIRECTORY
    directory, name = (found.path, ".") if folder else _split(found.path)
    argv = ["tar", "--create", "--format=gnu", "--blocking-factor=20", "--file=-", f"--directory={directory}", "--"]
    with Piped(sandbox, [*argv, name], into=False) as piped:
        reader = Reader(piped.read)
        count = 0
        try:
            for sent in members(reader, bounds):
                count += 1
                member = sent
                if not folder:
                    if sent.kind is not Kind.FILE or count > 1:
                        raise HostileError(f"the sandbox sent a {sent.kind} instead of one file")
                    member = replace(sent, path=())
                elif (count == 1) != (not member.path):
                    raise HostileError("the sandbox sent files instead of a directory")
                sink.add(member, reader.content())
        except HostileError as error:
            if not piped.bytes_read:  # tar could not even start: its own message says why
                _check_tar(sandbox, *piped.finish())
            raise error
        _check_tar(sandbox, *piped.finish())
        if count == 0:
            raise HostileError(f"the sandbox sent nothing for {found.path}")


def _split(path: str) -> tuple[str, str]:
    directory, _, name = path.rstrip("/").rpartition("/")
    # The "./" keeps tar from taking a name for an option or a pattern.
    return directory or "/", f"./{name}"


def _check_tar(sandbox: Sandbox, code: int, said: str, *, hint: str | None = None) -> None:
    if code:
        lines = [line for line in said.splitlines() if line.strip()]
        # tar's last line only says that there were earlier errors.
        word = lines[0].removeprefix("tar: ") if lines else f"exit code {code}"
        raise EngineError(f"tar in {sandbox.record.name} failed: {word[:300]}", hint)


def copy_in(
    sandbox: Sandbox, source: str, destination: str, *, follow: bool = False, note: Note = lambda _line: None
) -> int:
    """Copy a file or directory of the host into a sandbox, where its user can write.

    Args:
        sandbox: the sandbox to copy into.
        source: path on the host; with "/." at its end, the content of a directory.
        destination: path inside, by the rules of docker-cp(1).
        follow: if the source is a symbolic link, copy its target.
        note: called for each file that is left out.

    Returns:
        Bytes of content.

    Raises:
        SpecError: a path is wrong, or the destination is not writable.
        EngineError: tar failed, or the sandbox ended; a part may have been copied, and the message says so.
        OSError: the source cannot be read.
    """
    path = os.path.realpath(source) if follow else source.rstrip("/") or "/"
    folder = os.path.isdir(path) and not os.path.islink(path)
    if not os.path.lexists(path):
        raise SpecError(f"there is no {source}", "give a file or directory of the host")
    wanted = _absolute(destination)
    found = probe(sandbox, wanted, follow=True)
    directory, name = _target(sandbox, found, wanted, os.path.abspath(source), folder=folder)
    content = folder and ends_in_content(source) and found.kind is PathKind.DIRECTORY

    def send(packer: Packer) -> None:
        if folder:
            inner = os.open(path, _FOLDER)
            try:
                if content:
                    packer.add_content(inner, "")
                else:
                    packer.add(inner, ".", name)
            finally:
                os.close(inner)
        else:
            parent = os.open(os.path.dirname(path) or ".", _FOLDER)
            try:
                packer.add(parent, os.path.basename(path), name)
            finally:
                os.close(parent)
        packer.finish()

    return _send(sandbox, directory, send, note)


def extract(sandbox: Sandbox, descriptor: int, destination: str) -> int:
    """Unpack an archive from a descriptor inside a sandbox, under its isolation.

    Args:
        sandbox: the sandbox to unpack in.
        descriptor: descriptor of the archive, which is not compressed.
        destination: a directory inside.

    Returns:
        Bytes of the archive.

    Raises:
        SpecError: the destination is not a directory, or not writable.
        EngineError: tar failed, or the sandbox ended.
    """
    wanted = _absolute(destination)
    found = probe(sandbox, wanted, follow=True)
    if found.kind is not PathKind.DIRECTORY:
        raise SpecError(f"{wanted} in {sandbox.record.name} is not a directory", "name a directory to unpack it in")
    if not found.writable:
        raise _read_only(sandbox, wanted)

    def send(packer: Packer) -> None:
        packer.copy_archive(descriptor)

    return _send(sandbox, found.path, send, lambda _line: None)


def _target(sandbox: Sandbox, found: PathInfo, wanted: str, source: str, *, folder: bool) -> tuple[str, str]:
    """Return the directory inside to unpack in, and the copy's name in it.

    Raises:
        SpecError: the directory does not exist or is not writable, or the destination has the wrong type.
    """
    where = f"{wanted} in {sandbox.record.name}"
    if found.kind is PathKind.DIRECTORY:
        if not found.writable:
            raise _read_only(sandbox, wanted)
        return found.path, base(source)
    if found.kind is not PathKind.NOTHING and (folder or found.kind is not PathKind.FILE):
        raise SpecError(f"{where} exists and is not a {'directory' if folder else 'regular file'}")
    if found.kind is PathKind.NOTHING and wanted.endswith("/") and not folder:
        raise SpecError(f"{where} does not exist", "create the directory first, or leave out the slash")
    directory, name = _split(found.path)
    if found.parent is not PathKind.DIRECTORY:
        raise SpecError(f"there is no directory {directory} in {sandbox.record.name}", "create it first")
    if not found.parent_writable:
        raise _read_only(sandbox, directory)
    return directory, name.removeprefix("./")


def _read_only(sandbox: Sandbox, path: str) -> SpecError:
    return SpecError(f"{path} in {sandbox.record.name} is not writable: the root filesystem is read-only", _WRITABLE)


def _send(sandbox: Sandbox, directory: str, send: Callable[[Packer], None], note: Note) -> int:
    argv = ["tar", "--extract", "--file=-", f"--directory={directory}", "--no-same-owner", "--preserve-permissions"]
    # Existing directories keep their mode and time: the user may not change those of /tmp. For the target itself, the
    # entry "./", that takes an exclusion; with --no-recursion the pattern matches only that entry.
    argv += ["--no-overwrite-dir", "--anchored", "--no-recursion", "--exclude=."]
    with Piped(sandbox, argv, into=True) as piped:
        packer = Packer(piped.ours, note)
        broken = False
        try:
            send(packer)
        except BrokenPipeError:
            broken = True  # tar ended before all was sent: its own message says why
        _check_tar(sandbox, *piped.finish(), hint="a part may have been copied")
        if broken:
            raise EngineError(f"tar in {sandbox.record.name} ended early", "a part may have been copied")
        return packer.size
