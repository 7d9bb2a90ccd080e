"""Copy an application's files to where its sandbox sees them, and nothing from outside of its directory.

The directory may belong to another user, who may change it meanwhile. So every name is opened relative to its
directory's descriptor and never through a symbolic link (openat(2), O_NOFOLLOW), the type is taken from the open file,
and the bytes are counted as they are read. The copies belong to root, and appear all at once.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path

from sandbox.errors import SpecError, StoreError
from sandbox.request import parse
from sandbox.request.application import FILE
from sandbox.spec import MIB

MAX_TOTAL = 64 * MIB
"""Bytes of all files together."""
MAX_ENTRIES = 10_000
MAX_DEPTH = 32
EXCLUDED = ("__pycache__",)
"""Names that are never copied, like sandbox.toml and hidden entries, unless a pattern names them."""
_CHUNK = 1024 * 1024
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def stage(
    directory: Path, patterns: Sequence[str] | None, destination: Path, limit: int = MAX_TOTAL, reason: str = ""
) -> int:
    """Copy files of a directory to a new directory, which appears only when it is complete.

    Args:
        directory: directory of the application.
        patterns: as in `Application.files`; None for everything but hidden entries, `__pycache__` and sandbox.toml.
        destination: the new directory; only root may write to its parent.
        limit: bytes of all files together.
        reason: appended to the limit in the message.

    Returns:
        Bytes copied.

    Raises:
        SpecError: a pattern matches nothing, or an entry is not allowed or cannot be read; the message says which.
        StoreError: the copies cannot be written.
    """
    temporary = destination.with_name(destination.name + ".new")
    copier = _Copier(str(directory), None if patterns is None else [one.split("/") for one in patterns], limit, reason)
    try:
        with _opened(str(directory), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, None) as source:
            with _store_errors():
                temporary.mkdir(mode=0o755)
                target = os.open(temporary, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                copier.copy_directory(source, target, ())
                with _store_errors():
                    os.fchmod(target, 0o755)
            finally:
                os.close(target)
        copier.refuse_unused_patterns()
        with _store_errors():
            temporary.rename(destination)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return copier.total


@dataclass
class _Copier:
    directory: str
    patterns: list[list[str]] | None
    limit: int
    reason: str
    total: int = 0
    entries: int = 0
    used: set[int] = field(default_factory=set)
    seen: list[str] = field(default_factory=list)

    def copy_directory(self, source: int, target: int, place: tuple[str, ...]) -> bool:
        """Copy the wanted entries of a directory. Return whether there were any."""
        if len(place) > MAX_DEPTH:
            raise self._refusal(place, f"is more than {MAX_DEPTH} directories deep")
        taken = False
        for name in self._names(source, place):
            here = (*place, name)
            if self._wanted(here):
                self._check_name(here)
                taken |= self._copy(source, target, here)
        return taken

    def _names(self, source: int, place: tuple[str, ...]) -> list[str]:
        names = []
        try:
            with os.scandir(source) as listing:
                for entry in listing:
                    names.append(entry.name)
                    self.entries += 1
                    if self.entries > MAX_ENTRIES:
                        raise self._refusal(place, f"and directories before it have more than {MAX_ENTRIES} entries")
        except OSError as error:
            raise self._refusal(place, f"cannot be read: {error.strerror}") from None
        return sorted(names)

    def _copy(self, source: int, target: int, place: tuple[str, ...]) -> bool:
        name = place[-1]
        try:
            descriptor = os.open(name, _OPEN, dir_fd=source)
        except FileNotFoundError:
            return False  # deleted since the directory was read
        except OSError as error:
            if error.errno == errno.ELOOP:
                return self._copy_link(source, target, place)
            words = "is a socket or device" if error.errno == errno.ENXIO else f"cannot be read: {error.strerror}"
            raise self._refusal(place, words) from None
        try:
            found = os.fstat(descriptor)
            if stat.S_ISDIR(found.st_mode):
                return self._copy_subdirectory(descriptor, target, place)
            if not stat.S_ISREG(found.st_mode):
                raise self._refusal(place, "is neither a file nor a directory")
            if not self._matched(place):
                return False
            self._copy_file(descriptor, found, target, place)
        finally:
            os.close(descriptor)
        return True

    def _copy_subdirectory(self, source: int, target: int, place: tuple[str, ...]) -> bool:
        name = place[-1]
        with _store_errors():
            os.mkdir(name, 0o755, dir_fd=target)
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=target)
        try:
            with _store_errors():
                os.fchmod(inner, 0o755)  # whatever the umask
            taken = self.copy_directory(source, inner, place)
        finally:
            os.close(inner)
        if not taken and not self._matched(place):
            with _store_errors():
                os.rmdir(name, dir_fd=target)  # it was only searched
            return False
        return True

    def _copy_file(self, source: int, found: os.stat_result, target: int, place: tuple[str, ...]) -> None:
        with _store_errors():
            copy = os.open(place[-1], _WRITE, 0o600, dir_fd=target)
        try:
            while True:
                try:
                    chunk = os.read(source, _CHUNK)
                except OSError as error:
                    raise self._refusal(place, f"cannot be read: {error.strerror}") from None
                if not chunk:
                    break
                self.total += len(chunk)
                if self.total > self.limit:
                    most = f"{self.limit // MIB} MiB together{self.reason}"
                    raise SpecError(
                        f"the files of {_shown(self.directory)} are larger than {most}",
                        f"list the needed files as files = [...] in {FILE}, or mount large data by -v",
                    )
                with _store_errors():
                    while chunk:
                        chunk = chunk[os.write(copy, chunk) :]
            with _store_errors():
                os.fchmod(copy, 0o755 if found.st_mode & 0o111 else 0o644)
                os.utime(copy, ns=(found.st_mtime_ns, found.st_mtime_ns))
        finally:
            os.close(copy)

    def _copy_link(self, source: int, target: int, place: tuple[str, ...]) -> bool:
        """Copy a symbolic link as one, if it stays in the directory."""
        if not self._matched(place):
            return False
        try:
            leads = os.readlink(place[-1], dir_fd=source)
        except OSError as error:  # it is no longer a link
            raise self._refusal(place, f"cannot be read: {error.strerror}") from None
        parts = [part for part in leads.split("/") if part not in ("", ".")]
        up = next((index for index, part in enumerate(parts) if part != ".."), len(parts))
        # ".." is not allowed after a name: the name may be a link, and its parent elsewhere.
        if leads.startswith("/") or up >= len(place) or ".." in parts[up:]:
            raise self._refusal(place, f"is a symbolic link out of the directory, to {parse.one_line(leads)}")
        with _store_errors():
            os.symlink(leads, place[-1], dir_fd=target)
        return True

    def _wanted(self, place: tuple[str, ...]) -> bool:
        """Return whether an entry is copied, or may be a directory that contains one that is."""
        if place == (FILE,):
            return False
        if self.patterns is None:
            return not place[-1].startswith(".") and place[-1] not in EXCLUDED
        return self._matched(place) or any(_may_contain_match(pattern, place) for pattern in self.patterns)

    def _matched(self, place: tuple[str, ...]) -> bool:
        """Return whether a pattern matches an entry, or a directory that contains it."""
        if self.patterns is None:
            return True
        self.seen.append("/".join(place))
        found = False
        for index, pattern in enumerate(self.patterns):
            if _covers(pattern, place):
                self.used.add(index)
                found = True
        return found

    def refuse_unused_patterns(self) -> None:
        """Refuse a pattern that matches nothing: it is a mistake, and the application would lack the file later."""
        for index, pattern in enumerate(self.patterns or ()):
            if index not in self.used:
                import difflib

                text = "/".join(pattern)
                near = difflib.get_close_matches(text, set(self.seen), n=1)
                raise SpecError(
                    f"{_shown(self.directory)}/{FILE}: files has {parse.one_line(text)}, which matches nothing",
                    f"did you mean {near[0]!r}?" if near else "paths are relative to the directory",
                )

    def _check_name(self, place: tuple[str, ...]) -> None:
        try:
            place[-1].encode()
        except UnicodeEncodeError:
            raise self._refusal(place, "has a name that is not UTF-8") from None
        if not place[-1].isprintable():
            raise self._refusal(place, "has a name with a character that is not printable")

    def _refusal(self, place: tuple[str, ...], words: str) -> SpecError:
        path = _shown("/".join((self.directory, *place)))
        return SpecError(f"{path} {words}", f"list the needed files as files = [...] in {FILE}, without it")


def _covers(pattern: Sequence[str], place: Sequence[str]) -> bool:
    """Return whether a pattern matches an entry or a directory that contains it; hidden entries must be named."""
    if list(pattern) == ["."]:
        return not any(_is_excluded(name) for name in place)
    for end in range(1, len(place) + 1):
        if _fits(pattern, place[:end]):
            return not any(_is_excluded(name) for name in place[end:])
    return False


def _is_excluded(name: str) -> bool:
    return name.startswith(".") or name in EXCLUDED


def _fits(pattern: Sequence[str], place: Sequence[str]) -> bool:
    """Return whether a pattern matches a whole path: `*` and `?` within a name, `**` for any number of directories."""
    if not pattern:
        return not place
    if pattern[0] == "**":
        if _fits(pattern[1:], place):
            return True
        return bool(place) and not _is_excluded(place[0]) and _fits(pattern, place[1:])
    if not place or (place[0].startswith(".") and not pattern[0].startswith(".")):
        return False
    if place[0] in EXCLUDED:
        return pattern[0] == place[0] and _fits(pattern[1:], place[1:])
    return fnmatchcase(place[0], pattern[0]) and _fits(pattern[1:], place[1:])


def _may_contain_match(pattern: Sequence[str], place: Sequence[str]) -> bool:
    """Return whether a pattern could match something below a directory."""
    for part, name in zip(pattern, place, strict=False):
        if part == "**":
            return not name.startswith(".")
        if not fnmatchcase(name, part):
            return False
    return len(pattern) > len(place)


def _shown(path: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in path)


@contextmanager
def _opened(path: str, flags: int, dir_fd: int | None) -> Iterator[int]:
    try:
        descriptor = os.open(path, flags, dir_fd=dir_fd)
    except OSError as error:
        raise SpecError(f"{_shown(path)} cannot be read: {error.strerror}", "give a directory") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def _store_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(f"the application's files could not be copied: {error.strerror}") from error
