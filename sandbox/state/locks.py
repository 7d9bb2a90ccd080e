"""Locks that the kernel drops when their holder dies: flock(2) on an existing directory, or on a lock file.

docs/state.md says which locks may be held together, and in which order they are taken.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from sandbox.errors import BusyError, NotFoundError, StoreError
from sandbox.state import paths

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW


def hold(ident: str, *, wait: bool) -> int:
    """Take the lock of one sandbox, which is on its directory, and return a descriptor that holds it until closed.

    Raises:
        BusyError, NotFoundError, StoreError: as `Store.lock`.
    """
    directory = paths.sandboxes_dir() / ident
    try:
        descriptor = os.open(directory, _DIRECTORY)
    except FileNotFoundError:
        raise NotFoundError(f"there is no sandbox with the id {ident}") from None
    except OSError as error:
        raise StoreError(f"{directory} cannot be locked: {error.strerror}", "sandbox prune removes it") from error
    try:
        _flock(descriptor, wait=wait, what=f"sandbox {ident}")
        # If the directory was removed while we waited, the lock is on a directory that no longer exists.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), directory.lstat()):
                return descriptor
        raise NotFoundError(f"there is no sandbox with the id {ident} any more")
    except BaseException:
        os.close(descriptor)
        raise


@contextmanager
def named_lock(name: str, *, wait: bool = True) -> Iterator[None]:
    """Hold a host-wide lock, such as `network` or `images`.

    Raises:
        BusyError: another command holds it and `wait` is false.
        StoreError: the lock file cannot be created.
    """
    with explained("no lock could be taken"):
        paths.locks_dir().mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(paths.locks_dir() / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _flock(descriptor, wait=wait, what=name)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def dropping_claims() -> Iterator[None]:
    """Hold the lock for dropping claims, so that a claim found dead does not change before it is dropped.

    It is on an existing directory, so that a removal needs no space on the disk.
    """
    with ExitStack() as stack:
        with suppress(FileNotFoundError):
            descriptor = os.open(paths.names_dir(), _DIRECTORY)
            stack.callback(os.close, descriptor)
            _flock(descriptor, wait=True, what="claims")
        yield


def _flock(descriptor: int, *, wait: bool, what: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise BusyError(f"another command is working on {what}") from None


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Turn an OSError into a StoreError whose message says which action failed."""
    try:
        yield
    except PermissionError as error:
        raise StoreError(f"{what}: {error.strerror}: {error.filename}", "run it as root") from error
    except OSError as error:
        raise StoreError(f"{what}: {error.strerror}: {error.filename or paths.state_dir()}") from error
