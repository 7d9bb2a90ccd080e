"""What a copy does, step by step: look inside, choose the place, run tar inside, take the stream."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING, NamedTuple

from sandbox.copying.checked import DEFAULT_BOUNDS, Bounds, members
from sandbox.copying.inside import Piped
from sandbox.copying.pack import Note, Packer
from sandbox.copying.place import base, choose, ends_in_content, move
from sandbox.copying.reader import HostileError, Kind, Reader
from sandbox.copying.unpack import Archive, Unpacker, stage
from sandbox.errors import EngineError, SpecError

if TYPE_CHECKING:
    from sandbox.isolation.base import Sandbox

LOOK_TIMEOUT = 120.0
"""Seconds for a look inside; a busy emulated VM takes some."""
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_WRITABLE = "copy below /tmp, which can be written at every level"

# Prints what a path is, its parent, and its own name as the kernel resolves it. "test -w" fails on a read-only mount.
_LOOK = r"""
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


class What(StrEnum):
    """What a path inside is."""

    LINK = "link"
    DIRECTORY = "directory"
    FILE = "file"
    SPECIAL = "special"
    NOTHING = "nothing"


class Look(NamedTuple):
    """What is at a path inside, as the sandbox says it.

    Attributes:
        what: at the path.
        writable: whether the sandbox's user can write to it.
        parent: at the path's directory.
        parent_writable: whether the sandbox's user can write to that.
        path: the path, links followed where that was asked.
    """

    what: What
    writable: bool
    parent: What
    parent_writable: bool
    path: str


def look(sandbox: Sandbox, path: str, *, follow: bool = False) -> Look:
    """Ask the sandbox what is at a path.

    Raises:
        EngineError: it does not answer as it should.
    """
    name = sandbox.record.name
    argv = ["/bin/sh", "-c", _LOOK, "look", path, "follow" if follow else ""]
    try:
        result = sandbox.exec(argv, timeout=LOOK_TIMEOUT)
    except TimeoutError:
        raise EngineError(f"{name} does not answer") from None
    try:
        first, second, found = os.fsdecode(result.stdout).split("\n", 2)
        what, _, writable = first.partition(" ")
        parent, _, parent_writable = second.partition(" ")
        return Look(What(what), writable == "w", What(parent), parent_writable == "w", found)
    except ValueError:
        raise EngineError(f"{name} does not say what {path} is") from None


def _absolute(path: str) -> str:
    """A path inside; a relative one counts from the root, as in docker-cp(1)."""
    if not path or "\0" in path:
        raise SpecError(f"{path!r} is no path", "SANDBOX:PATH, such as web:/tmp/report")
    return path if path.startswith("/") else f"/{path}"


def copy_out(
    sandbox: Sandbox, source: str, destination: str, *, follow: bool = False, bounds: Bounds = DEFAULT_BOUNDS
) -> int:
    """Copy a file or directory of a sandbox to the host. Nothing of it stays when it fails.

    Args:
        sandbox: where from.
        source: path inside; with "/." at its end, the content of a directory.
        destination: path on the host; rules of docker-cp(1).
        follow: where the source is a symbolic link, copy what it leads to.
        bounds: how much may come.

    Returns:
        Bytes of content.

    Raises:
        SpecError: a path is wrong.
        HostileError: the sandbox sent what is not let out.
        EngineError: tar failed, or the sandbox ended.
        OSError: the host's disk refuses.
    """
    found = _source(sandbox, source, follow=follow)
    folder = found.what is What.DIRECTORY
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
    """Write an archive of a file or directory of a sandbox to a descriptor, checked as for `copy_out`.

    Returns:
        Bytes of content.

    Raises:
        SpecError, HostileError, EngineError, OSError: as for `copy_out`.
    """
    found = _source(sandbox, source, follow=follow)
    folder = found.what is What.DIRECTORY
    path = _absolute(source)
    archive = Archive(descriptor, "" if folder and ends_in_content(path) else base(path))
    _receive(sandbox, found, archive, bounds)
    archive.finish()
    return archive.size


def _source(sandbox: Sandbox, source: str, *, follow: bool) -> Look:
    found = look(sandbox, _absolute(source), follow=follow)
    if found.what is What.NOTHING:
        raise SpecError(f"there is no {_absolute(source)} in {sandbox.record.name}", "or its user may not see it")
    if found.what is What.LINK:
        raise SpecError(f"{source} in {sandbox.record.name} is a symbolic link", "-L copies what it leads to")
    if found.what is What.SPECIAL:
        raise SpecError(f"{source} in {sandbox.record.name} is neither a file nor a directory")
    return found


def _receive(sandbox: Sandbox, found: Look, sink: Unpacker | Archive, bounds: Bounds) -> None:
    """Run tar inside and hand its entries to the sink; a file comes as the sink's top, like a directory."""
    folder = found.what is What.DIRECTORY
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
                        raise HostileError(f"the sandbox sent a {sent.kind} in place of one file")
                    member = replace(sent, path=())
                elif (count == 1) != (not member.path):
                    raise HostileError("the sandbox sent files in place of a directory")
                sink.add(member, reader.content())
        except HostileError as error:
            if not piped.taken:  # it could not even begin: then its own words say why
                _check_tar(sandbox, *piped.finish())
            raise error
        _check_tar(sandbox, *piped.finish())
        if count == 0:
            raise HostileError(f"the sandbox sent nothing for {found.path}")


def _split(path: str) -> tuple[str, str]:
    directory, _, name = path.rstrip("/").rpartition("/")
    # With "./" before it, no name is taken for an option or a pattern.
    return directory or "/", f"./{name}"


def _check_tar(sandbox: Sandbox, code: int, said: str, *, hint: str | None = None) -> None:
    if code:
        lines = [line for line in said.splitlines() if line.strip()]
        # tar's last line only says that there were errors before it.
        word = lines[0].removeprefix("tar: ") if lines else f"exit code {code}"
        raise EngineError(f"tar in {sandbox.record.name} failed: {word[:300]}", hint)


def copy_in(
    sandbox: Sandbox, source: str, destination: str, *, follow: bool = False, note: Note = lambda _line: None
) -> int:
    """Copy a file or directory of the host into a sandbox, where its user can write.

    Args:
        sandbox: where to.
        source: path on the host; with "/." at its end, the content of a directory.
        destination: path inside; rules of docker-cp(1).
        follow: where the source is a symbolic link, copy what it leads to.
        note: told what was left out.

    Returns:
        Bytes of content.

    Raises:
        SpecError: a path is wrong, or cannot be written.
        EngineError: tar failed, or the sandbox ended; a part may have been copied, and the message says so.
        OSError: the source cannot be read.
    """
    path = os.path.realpath(source) if follow else source.rstrip("/") or "/"
    folder = os.path.isdir(path) and not os.path.islink(path)
    if not os.path.lexists(path):
        raise SpecError(f"there is no {source}", "name a file or a directory of the host")
    wanted = _absolute(destination)
    found = look(sandbox, wanted, follow=True)
    directory, name = _target(sandbox, found, wanted, os.path.abspath(source), folder=folder)
    content = folder and ends_in_content(source) and found.what is What.DIRECTORY

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
    """Unpack an archive from a descriptor inside a sandbox, behind its walls.

    Args:
        sandbox: where to.
        descriptor: of the archive, not compressed.
        destination: a directory inside.

    Returns:
        Bytes of the archive.

    Raises:
        SpecError: the destination is no directory, or cannot be written.
        EngineError: tar failed, or the sandbox ended.
    """
    wanted = _absolute(destination)
    found = look(sandbox, wanted, follow=True)
    if found.what is not What.DIRECTORY:
        raise SpecError(f"{wanted} in {sandbox.record.name} is no directory", "an archive is unpacked in a directory")
    if not found.writable:
        raise _read_only(sandbox, wanted)

    def send(packer: Packer) -> None:
        packer.pass_on(descriptor)

    return _send(sandbox, found.path, send, lambda _line: None)


def _target(sandbox: Sandbox, found: Look, wanted: str, source: str, *, folder: bool) -> tuple[str, str]:
    """The directory inside to unpack in, and the copy's name there.

    Raises:
        SpecError: it is not there, cannot be written, or is what it must not be.
    """
    where = f"{wanted} in {sandbox.record.name}"
    if found.what is What.DIRECTORY:
        if not found.writable:
            raise _read_only(sandbox, wanted)
        return found.path, base(source)
    if found.what is not What.NOTHING and (folder or found.what is not What.FILE):
        raise SpecError(f"{where} is there and is no {'directory' if folder else 'regular file'}")
    if found.what is What.NOTHING and wanted.endswith("/") and not folder:
        raise SpecError(f"{where} is no directory that is there", "make it first, or leave out the slash")
    directory, name = _split(found.path)
    if found.parent is not What.DIRECTORY:
        raise SpecError(f"there is no directory {directory} in {sandbox.record.name}", "make it first")
    if not found.parent_writable:
        raise _read_only(sandbox, directory)
    return directory, name.removeprefix("./")


def _read_only(sandbox: Sandbox, path: str) -> SpecError:
    return SpecError(f"{path} in {sandbox.record.name} cannot be written: its root is read-only", _WRITABLE)


def _send(sandbox: Sandbox, directory: str, send: Callable[[Packer], None], note: Note) -> int:
    argv = ["tar", "--extract", "--file=-", f"--directory={directory}", "--no-same-owner", "--preserve-permissions"]
    # Directories that are there keep their mode and time: /tmp is not the user's to change. For the target itself, the
    # entry "./", that takes an exclusion; with --no-recursion the pattern means that entry and nothing below it.
    argv += ["--no-overwrite-dir", "--anchored", "--no-recursion", "--exclude=."]
    with Piped(sandbox, argv, into=True) as piped:
        packer = Packer(piped.ours, note)
        broken = False
        try:
            send(packer)
        except BrokenPipeError:
            broken = True  # it ended before all was sent: its own words say why
        _check_tar(sandbox, *piped.finish(), hint="a part may have been copied")
        if broken:
            raise EngineError(f"tar in {sandbox.record.name} ended early", "a part may have been copied")
        return packer.size
