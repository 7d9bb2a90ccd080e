"""The state on disk: one directory per sandbox, one small file per name and address in use.

Intent comes before act: a record names every resource before it is made. Uniqueness rests on O_EXCL, exclusion on
flock(2), so nothing needs repair after a crash: the kernel drops the locks of the dead.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sandbox import paths
from sandbox.errors import BusyError, NameTakenError, NotFoundError, StoreError
from sandbox.record import ID_PATTERN, Record
from sandbox.spec import SandboxSpec

RECORD_FILE = "record.json"
LOCK_FILE = "lock"
MAX_RECORD = 1024 * 1024
"""Bytes. A record is a few hundred; anything near this is not one of ours."""


class KnownIds(Collection[str]):
    """The ids that have a directory, asked of the disk at each question.

    A sandbox's directory is made before anything else of it. So whatever carries an id that is not in here at the
    moment of the question belongs to nobody, even while other commands make new sandboxes.
    """

    def __init__(self, store: Store, but: str | None) -> None:
        self._store = store
        self._but = but

    def __contains__(self, ident: object) -> bool:
        return (
            isinstance(ident, str)
            and ident != self._but
            and bool(ID_PATTERN.fullmatch(ident))
            and (paths.sandboxes_dir() / ident).is_dir()
        )

    def __iter__(self) -> Iterator[str]:
        return (ident for ident in self._store.ids() if ident != self._but)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Store:
    """The state directory. Cheap to make; touches the disk only when asked."""

    def ensure(self) -> None:
        """Make the directories, for root alone.

        Raises:
            StoreError: they cannot be made.
        """
        with _explained("the state directory cannot be written"):
            root = paths.state_dir()
            # Others may enter the root (image forms are read by engines' own users), not list it.
            root.mkdir(parents=True, exist_ok=True, mode=0o711)
            for directory, mode in (
                (paths.sandboxes_dir(), 0o711),
                (paths.names_dir(), 0o700),
                (paths.addresses_dir(), 0o700),
                (paths.locks_dir(), 0o700),
                (paths.host_dir(), 0o700),
            ):
                directory.mkdir(exist_ok=True, mode=mode)

    def new(self, spec: SandboxSpec, address: str, ident: str) -> Record:
        """Claim the name and write the first record. The caller holds the id's lock (see `claim_id`).

        Raises:
            NameTakenError: the name is in use, even by a sandbox that has exited.
            StoreError: the disk refuses.
        """
        record = Record(id=ident, spec=spec, address=address)
        with _explained(f"no record of {spec.name!r} could be written"):
            if not self._claim(paths.names_dir() / spec.name, ident):
                raise NameTakenError(
                    f"the name {spec.name!r} is taken",
                    f"choose another --name, or: sandbox rm -f {spec.name}",
                )
            self.save(record)
        return record

    def claim_id(self) -> tuple[str, int]:
        """A fresh id, its directory, and a locked descriptor on it that keeps `prune` away until it is closed.

        Raises:
            StoreError: the disk refuses.
        """
        with _explained("no sandbox directory could be made"):
            while True:
                ident = secrets.token_hex(6)
                directory = paths.sandboxes_dir() / ident
                try:
                    directory.mkdir(mode=0o711)
                except FileExistsError:
                    continue
                descriptor = os.open(directory / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                return ident, descriptor

    def claim_address(self, address: str, ident: str) -> bool:
        """Mark an address as used; False when it is taken already."""
        with _explained("no address could be claimed"):
            return self._claim(paths.addresses_dir() / address, ident)

    def used_addresses(self) -> set[str]:
        """Addresses in use."""
        try:
            return set(os.listdir(paths.addresses_dir()))
        except FileNotFoundError:
            return set()

    @staticmethod
    def _claim(path: Path, ident: str) -> bool:
        # Written in full before it appears under its name, so that no reader sees an empty claim.
        temporary = path.with_name(f".{path.name}.{ident}")
        temporary.write_text(ident, encoding="ascii")
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def save(self, record: Record) -> None:
        """Replace the record in one step: a reader sees the old one or the new one, never half of one.

        Raises:
            StoreError: the disk refuses; the old record stands.
        """
        path = record.directory / RECORD_FILE
        temporary = path.with_suffix(".new")
        with _explained(f"the record of {record.name!r} could not be written"):
            temporary.write_text(json.dumps(record.to_json()), encoding="utf-8")
            temporary.replace(path)

    def load(self, ident: str) -> Record:
        """Read one record.

        Raises:
            NotFoundError: there is none.
            StoreError: it is not one of ours.
        """
        path = paths.sandboxes_dir() / ident / RECORD_FILE
        try:
            if path.stat().st_size > MAX_RECORD:
                raise StoreError(f"the record {path} is too large to be one of ours", "sandbox prune removes it")
            record = Record.from_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise NotFoundError(f"there is no sandbox with the id {ident}") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"the record {path} is unreadable: {error}", "sandbox prune removes it") from error
        if record.id != ident:
            raise StoreError(f"the record {path} claims to be {record.id}", "sandbox prune removes it")
        return record

    def ids(self) -> list[str]:
        """Ids that have a directory, oldest first, whether their record is sound or not.

        Raises:
            StoreError: the directory may not be read.
        """
        with _explained("the state directory cannot be read"):
            try:
                with os.scandir(paths.sandboxes_dir()) as entries:
                    found = [
                        (entry.stat().st_ctime, entry.name) for entry in entries if ID_PATTERN.fullmatch(entry.name)
                    ]
            except FileNotFoundError:
                return []
        return [name for _, name in sorted(found)]

    def known(self, but: str | None = None) -> KnownIds:
        """The ids in use, as a live collection; `but` leaves one out."""
        return KnownIds(self, but)

    def mark_used(self, level: str) -> None:
        """Note that a level may hold something that all its sandboxes share.

        Raises:
            StoreError: the disk refuses.
        """
        with _explained("the use of a level could not be noted"):
            (paths.host_dir() / f"used-{level}").touch()

    def was_used(self, level: str) -> bool:
        """Whether `mark_used` was called since the last `unmark_used`."""
        return (paths.host_dir() / f"used-{level}").exists()

    def unmark_used(self, level: str) -> None:
        """Forget `mark_used`."""
        (paths.host_dir() / f"used-{level}").unlink(missing_ok=True)

    def records(self) -> list[Record]:
        """All sound records, oldest first. Broken ones are left to `prune`."""
        found = []
        for ident in self.ids():
            with suppress(NotFoundError, StoreError):
                found.append(self.load(ident))
        return sorted(found, key=lambda record: record.created)

    def find(self, reference: str) -> Record:
        """A sandbox by its name, its id or an unambiguous beginning of its id.

        Raises:
            NotFoundError: none, or more than one.
            StoreError: its record is broken.
        """
        try:
            ident = (paths.names_dir() / Path(reference).name).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            ident = ""
        if ID_PATTERN.fullmatch(ident):
            return self.load(ident)
        matches = [known for known in self.ids() if known.startswith(reference)] if reference else []
        if len(matches) == 1:
            return self.load(matches[0])
        if matches:
            raise NotFoundError(f"the id {reference!r} fits {len(matches)} sandboxes", "give more of its digits")
        raise NotFoundError(f"there is no sandbox {reference!r}", "sandbox ps lists them")

    def forget(self, ident: str) -> None:
        """Drop the name, the address and the directory of an id, the record with it.

        Raises:
            StoreError: something could not be removed, or something is still mounted there.
        """
        directory = paths.sandboxes_dir() / ident
        if _mounted_below(directory):
            # Deleting would reach through the mount, into the root filesystem that all sandboxes share.
            raise StoreError(f"something is still mounted below {directory}", "sandbox prune unmounts it")
        with _explained(f"the state of {ident} could not be removed"):
            for claims in (paths.addresses_dir(), paths.names_dir()):
                for claim in _claims_of(claims, ident):
                    claim.unlink(missing_ok=True)
            with suppress(FileNotFoundError):
                shutil.rmtree(directory)

    def stray_claims(self) -> list[Path]:
        """Names and addresses whose sandbox has no directory any more."""
        known = set(self.ids())
        return [
            claim
            for directory in (paths.addresses_dir(), paths.names_dir())
            for claim in _claims_of(directory, None)
            if _owner(claim) not in known
        ]

    @contextmanager
    def lock(self, ident: str, *, wait: bool = True) -> Iterator[None]:
        """Hold the lock of one sandbox; only one command works on a sandbox at a time.

        Raises:
            BusyError: another command holds it and `wait` is false.
            NotFoundError: the sandbox is gone.
        """
        try:
            descriptor = os.open(
                paths.sandboxes_dir() / ident / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
        except FileNotFoundError:
            raise NotFoundError(f"there is no sandbox with the id {ident}") from None
        try:
            _flock(descriptor, wait=wait, what=f"sandbox {ident}")
            yield
        finally:
            os.close(descriptor)


@contextmanager
def named_lock(name: str, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock of the whole host, such as `network` or `images`.

    Raises:
        BusyError: another command holds it and `wait` is false.
        StoreError: the lock file cannot be made.
    """
    with _explained("no lock could be taken"):
        paths.locks_dir().mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(paths.locks_dir() / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _flock(descriptor, wait=wait, what=name)
        yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int, *, wait: bool, what: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise BusyError(f"another command is working on {what}") from None


def _mounted_below(directory: Path) -> bool:
    """Whether the mount table names anything in the directory; os.path.ismount overlooks binds within one system."""
    prefix = f"{directory}/"
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as stream:
        return any(line.split(" ", 5)[4].startswith(prefix) for line in stream)


def _claims_of(directory: Path, ident: str | None) -> list[Path]:
    try:
        claims = sorted(directory.iterdir())
    except FileNotFoundError:
        return []
    return [claim for claim in claims if ident is None or _owner(claim) == ident]


def _owner(claim: Path) -> str:
    if claim.name.startswith("."):  # a claim that was being written: .NAME.ID
        return claim.name.rpartition(".")[2]
    try:
        return claim.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turn an OSError into one line that says what was being done."""
    try:
        yield
    except PermissionError as error:
        raise StoreError(f"{what}: {error.strerror}: {error.filename}", "run it as root") from error
    except OSError as error:
        raise StoreError(f"{what}: {error.strerror}: {error.filename or paths.state_dir()}") from error
