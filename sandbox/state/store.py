"""The state on disk: one directory per sandbox, one small file per name and address in use.

A resource is recorded before it is created. link(2) and mkdir(2) guarantee that names and addresses are unique, and
flock(2) excludes other commands. Nothing needs repair after a crash: the kernel drops the locks of dead processes.
Root acts on the files, so they are validated as untrusted input, and no links are followed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from sandbox.errors import BusyError, NameTakenError, NewerRecordError, NotFoundError, StoreError
from sandbox.failpoints import Failpoint, reached
from sandbox.spec import NAME_PATTERN, SandboxSpec
from sandbox.state import codec, files, paths
from sandbox.state.locks import dropping_claims, explained, hold
from sandbox.state.locks import named_lock as named_lock  # the locks of the host, for those who use the store
from sandbox.state.processid import ProcessId
from sandbox.state.record import ID_PATTERN, Record

RECORD_FILE = "record.json"
GONE_PREFIX = ".gone-"
"""Prefixed to the name of a directory that is being removed, so that other commands no longer see the sandbox."""
MAX_RECORD = 1024 * 1024
"""In bytes. A record has a few hundred."""
_MAX_CLAIM = 64
_PAUSE = 0.01


class KnownIds(Collection[str]):
    """The ids that have a directory; every query looks at the disk.

    A sandbox's directory is created first. So a resource with an id that is not in this collection is orphaned, even
    while other commands create new sandboxes.
    """

    def __init__(self, store: Store, but: str | None) -> None:
        self._store = store
        self._but = but

    def __contains__(self, ident: object) -> bool:
        return (
            isinstance(ident, str)
            and ident != self._but
            and bool(ID_PATTERN.fullmatch(ident))
            and files.is_directory(paths.sandboxes_dir() / ident)
        )

    def __iter__(self) -> Iterator[str]:
        return (ident for ident in self._store.ids() if ident != self._but)

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Store:
    """The state directory. Creating this object does not access the disk."""

    def ensure(self) -> None:
        """Create the directories, accessible to root only.

        Raises:
            StoreError: they cannot be created.
        """
        with explained("the state directory cannot be written"):
            root = paths.state_dir()
            # Other users may search the root, but not list it: engines' users read image forms.
            root.mkdir(parents=True, exist_ok=True, mode=0o711)
            for directory, mode in (
                (paths.sandboxes_dir(), 0o711),
                (paths.names_dir(), 0o700),
                (paths.addresses_dir(), 0o700),
                (paths.ports_dir(), 0o700),
                (paths.locks_dir(), 0o700),
                (paths.host_dir(), 0o700),
            ):
                directory.mkdir(exist_ok=True, mode=mode)

    def new(self, spec: SandboxSpec, address: str, ident: str, owner: ProcessId | None = None) -> Record:
        """Claim the name and write the first record. The caller holds the id's lock (see `claim_id`).

        Raises:
            NameTakenError: the name is in use, even by a sandbox that has exited.
            StoreError: the record cannot be written.
        """
        record = Record(id=ident, spec=spec, address=address, owner=owner)
        with explained(f"no record of {spec.name!r} could be written"):
            self._claim_name(spec.name, ident)
            reached(Failpoint.NAME_CLAIMED)
            self.save(record)
            reached(Failpoint.RECORD_WRITTEN)
        return record

    def claim_id(self) -> tuple[str, int]:
        """Create a directory with a new id; return the id and a descriptor that locks it against `prune` until closed.

        Raises:
            StoreError: the directory cannot be created.
        """
        with explained("no sandbox directory could be made"):
            while True:
                ident = os.urandom(6).hex()
                directory = paths.sandboxes_dir() / ident
                try:
                    directory.mkdir(mode=0o711)
                except FileExistsError:
                    continue
                reached(Failpoint.DIRECTORY_MADE)
                with suppress(NotFoundError):  # `prune` removed it just before it was locked
                    descriptor = hold(ident, wait=True)
                    reached(Failpoint.ID_CLAIMED)
                    return ident, descriptor

    def claim_address(self, address: str, ident: str) -> bool:
        """Mark an address as used; return False if it already is."""
        with explained("no address could be claimed"):
            claimed = self._claim(paths.addresses_dir() / address, ident)
        if claimed:
            reached(Failpoint.ADDRESS_CLAIMED)
        return claimed

    def used_addresses(self) -> set[str]:
        """Return the addresses in use."""
        try:
            return set(os.listdir(paths.addresses_dir()))
        except FileNotFoundError:
            return set()

    def claim_port(self, number: int, ident: str) -> bool:
        """Mark a port of the host as published; return False if it already is."""
        with explained("no port could be claimed"):
            return self._claim(paths.ports_dir() / str(number), ident)

    def port_owner(self, number: int) -> str:
        """Return the id of the sandbox that has claimed a port of the host; "" if none has."""
        return _owner(paths.ports_dir() / str(number))

    @staticmethod
    def _claim(path: Path, ident: str) -> bool:
        # Written completely before it is linked to its name, so that no reader sees an empty claim.
        temporary = path.with_name(f".{path.name}.{ident}")
        try:
            files.write_new(temporary, ident.encode("ascii"))
            reached(Failpoint.CLAIM_WRITTEN)
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink(missing_ok=True)
        return True

    def save(self, record: Record) -> None:
        """Replace the record atomically: a reader sees either the old or the new one.

        Raises:
            StoreError: it cannot be written; the old record is kept.
        """
        path = record.directory / RECORD_FILE
        temporary = path.with_suffix(".new")
        with explained(f"the record of {record.name!r} could not be written"):
            temporary.unlink(missing_ok=True)  # left by a command that died before its rename
            try:
                files.write_new(temporary, json.dumps(record.to_json()).encode())
            except OSError:
                temporary.unlink(missing_ok=True)  # frees the space on a full disk
                raise
            reached(Failpoint.RECORD_PENDING)
            temporary.replace(path)

    def _claim_name(self, name: str, ident: str) -> None:
        if not self._claim(paths.names_dir() / name, ident):
            alive = _owner(paths.names_dir() / name) in self.known()
            remedy = f"sandbox rm -f {name}" if alive else "sandbox prune, for a removal did not finish"
            raise NameTakenError(f"the name {name!r} is taken", f"choose another --name, or: {remedy}")

    def rename(self, record: Record, name: str) -> None:
        """Give a sandbox another name. The caller holds its lock.

        Raises:
            NameTakenError: the name is in use.
            StoreError: the record cannot be written; the old name is kept.
        """
        old = record.name
        with explained(f"{old!r} could not be renamed"):
            self._claim_name(name, record.id)
            record.spec = replace(record.spec, name=name)
            self.save(record)
            (paths.names_dir() / old).unlink(missing_ok=True)

    def load(self, ident: str) -> Record:
        """Read one record.

        Raises:
            NotFoundError: it does not exist.
            NewerRecordError: a newer version of sandbox wrote it.
            StoreError: it is not a valid record.
        """
        path = paths.sandboxes_dir() / ident / RECORD_FILE
        try:
            text = files.read(path, MAX_RECORD)
            record = Record.from_json(codec.parse(text))
        except FileNotFoundError:
            raise NotFoundError(f"there is no sandbox with the id {ident}") from None
        except NewerRecordError as error:
            raise NewerRecordError(
                f"sandbox {ident} was created by a newer version of sandbox: {error.message}",
                "use that version",
            ) from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise StoreError(f"the record {path} is unreadable: {error}", "sandbox prune removes it") from error
        if record.id != ident:
            raise StoreError(f"the record {path} claims to be {record.id}", "sandbox prune removes it")
        return record

    def ids(self) -> list[str]:
        """Return the ids that have a directory, oldest first, even those with a broken record.

        Raises:
            StoreError: the directory cannot be read.
        """
        with explained("the state directory cannot be read"):
            try:
                with os.scandir(paths.sandboxes_dir()) as entries:
                    found = [
                        (entry.stat(follow_symlinks=False).st_ctime, entry.name)
                        for entry in entries
                        if ID_PATTERN.fullmatch(entry.name) and entry.is_dir(follow_symlinks=False)
                    ]
            except FileNotFoundError:
                return []
        return [name for _, name in sorted(found)]

    def known(self, but: str | None = None) -> KnownIds:
        """Return the ids in use, as a live collection, without the id `but`."""
        return KnownIds(self, but)

    def mark_used(self, level: str) -> None:
        """Note that a level may have created resources which its sandboxes share.

        Raises:
            StoreError: the note cannot be written.
        """
        with explained("the use of a level could not be noted"):
            (paths.host_dir() / f"used-{level}").touch()

    def was_used(self, level: str) -> bool:
        """Return whether `mark_used` was called since the last `unmark_used`."""
        return (paths.host_dir() / f"used-{level}").exists()

    def unmark_used(self, level: str) -> None:
        """Undo `mark_used`."""
        (paths.host_dir() / f"used-{level}").unlink(missing_ok=True)

    def records(self) -> list[Record]:
        """Return all valid records, oldest first. Broken ones are removed by `prune`."""
        found = []
        for ident in self.ids():
            with suppress(NotFoundError, StoreError):
                found.append(self.load(ident))
        return sorted(found, key=lambda record: record.created)

    def find(self, reference: str) -> Record:
        """Return the record of a sandbox by its name, its id, or an unambiguous beginning of its id.

        Raises:
            NotFoundError: no sandbox matches, or more than one.
            StoreError: its record is broken.
        """
        return self.load(self.resolve(reference))

    def resolve(self, reference: str) -> str:
        """Return the id for a name, an id, or an unambiguous beginning of an id; its record may be gone or broken.

        Raises:
            NotFoundError: no sandbox matches, or more than one.
            StoreError: the state directory cannot be read.
        """
        ident = _owner(paths.names_dir() / reference) if NAME_PATTERN.fullmatch(reference) else ""
        if ident:
            return ident
        if ID_PATTERN.fullmatch(reference) and (paths.sandboxes_dir() / reference).is_dir():
            return reference
        matches = [known for known in self.ids() if known.startswith(reference)] if reference else []
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise NotFoundError(f"the id {reference!r} matches {len(matches)} sandboxes", "give more of its digits")
        raise NotFoundError(f"there is no sandbox {reference!r}", "sandbox ps lists them")

    def remove(self, idents: Iterable[str]) -> dict[str, StoreError]:
        """Remove the claims and directories of sandboxes; mounts and claims are read once for all of them.

        Returns:
            The errors by id: something could not be removed, or is still mounted below the directory.
        """
        wanted = list(idents)
        mounted = files.mounts_below(paths.sandboxes_dir())
        claims = {ident: self._claims_by_record(ident) for ident in wanted}
        everyone = self._claims() if None in claims.values() else {}
        failed = {}
        for ident in wanted:
            known = claims[ident]
            try:
                self._remove(ident, known if known is not None else everyone.get(ident, []), mounted)
            except StoreError as error:
                failed[ident] = error
        return failed

    @staticmethod
    def _remove(ident: str, claims: Iterable[Path], mounted: Iterable[str]) -> None:
        directory = paths.sandboxes_dir() / ident
        inside = [path for path in mounted if f"/{ident}/" in path]
        if inside:
            # A recursive removal would delete the mounted files, such as the root filesystem that all sandboxes share.
            raise StoreError(
                f"something is still mounted below {directory}", f"sandbox prune, or: umount -R {inside[0]}"
            )
        with explained(f"the state of {ident} could not be removed"):
            gone = directory.with_name(GONE_PREFIX + ident)
            with suppress(FileNotFoundError):
                directory.rename(gone)
                reached(Failpoint.DIRECTORY_MOVED)
            with dropping_claims():
                for claim in claims:
                    # Checked again: `prune` may have dropped it, and another sandbox may have claimed it since.
                    if _owner(claim) == ident:
                        claim.unlink()
                        reached(Failpoint.CLAIM_DROPPED)
            files.remove(gone)
            reached(Failpoint.STATE_REMOVED)

    def prune(self, *, dry_run: bool = False) -> list[str]:
        """Remove files that belong to no sandbox: claims without a directory, half-removed directories, stray files.

        Returns:
            One line per item removed, or to be removed.

        Raises:
            StoreError: an item could not be removed.
        """
        found: list[tuple[str, Path]] = []
        with explained("the state directory cannot be pruned"), dropping_claims():
            # Claims are read before directories: a directory is created first, so a claim without one is dead.
            for ident, claims in self._claims().items():
                if not ident or not files.is_directory(paths.sandboxes_dir() / ident):
                    found += [(f"claim {one.parent.name}/{one.name}", one) for one in claims]
            for path in files.entries(paths.sandboxes_dir()):
                half = path.name.removeprefix(GONE_PREFIX)
                if half != path.name and ID_PATTERN.fullmatch(half) and not files.mounts_below(path):
                    found.append((f"half-removed directory {path}", path))
                elif ID_PATTERN.fullmatch(path.name) and not files.is_directory(path):
                    found.append((f"stray file {path}", path))
            for _, path in found if not dry_run else ():
                files.remove(path)
        return [line for line, _ in found]

    def _claims_by_record(self, ident: str) -> list[Path] | None:
        """Return the claims of a sandbox according to its record; None if it has no valid record.

        Reading all claims to find those of one sandbox would make a removal slower with the number of sandboxes.
        """
        try:
            record = self.load(ident)
        except (NotFoundError, StoreError):
            return None
        places = [paths.names_dir() / record.name, paths.addresses_dir() / record.address]
        places += [paths.ports_dir() / str(one.host) for one in record.spec.publish]
        return [place for place in places if _owner(place) == ident]

    @staticmethod
    def _claims() -> dict[str, list[Path]]:
        """Return all claims by the id that they belong to; "" for those without a readable id."""
        found: dict[str, list[Path]] = {}
        for directory in (paths.addresses_dir(), paths.ports_dir(), paths.names_dir()):
            for claim in files.entries(directory):
                owner = _owner(claim)
                if owner or os.path.lexists(claim):  # it may have been removed since
                    found.setdefault(owner, []).append(claim)
        return found

    @contextmanager
    def lock(self, ident: str, *, wait: bool = True, patience: float | None = None) -> Iterator[None]:
        """Hold the lock of one sandbox, so that only one command works on it at a time.

        Args:
            ident: of the sandbox.
            wait: wait for ever, unless `patience` is given.
            patience: the most seconds to wait.

        Raises:
            BusyError: another command holds it, and `wait` is false or `patience` is over.
            NotFoundError: the sandbox is gone.
        """
        deadline = time.monotonic() + (patience or 0.0)
        with ExitStack() as stack:
            while True:
                try:
                    descriptor = hold(ident, wait=wait and patience is None)
                    break
                except BusyError:
                    if time.monotonic() >= deadline:
                        raise
                time.sleep(_PAUSE)  # flock(2) has no timeout
            stack.callback(os.close, descriptor)
            yield


def _owner(claim: Path) -> str:
    """Return the id that a claim belongs to; "" if it contains none."""
    if claim.name.startswith("."):  # an incomplete claim: .NAME.ID
        text = claim.name.rpartition(".")[2]
    else:
        try:
            text = files.read(claim, _MAX_CLAIM).decode("ascii").strip()
        except (OSError, ValueError):
            return ""
    return text if ID_PATTERN.fullmatch(text) else ""
