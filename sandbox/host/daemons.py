"""Start and stop daemons on hosts without an init system: detached, with a log, and with a record of those we started.

The record is (pid, start time, boot id), so that a later process with the same pid is never mistaken for the daemon.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from sandbox.errors import EngineError, StoreError
from sandbox.state import paths
from sandbox.state.processid import ProcessId
from sandbox.state.store import Store

_PREFIX = "daemon-"
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}
_PAUSE = 0.05


def log_path(name: str) -> Path:
    """Return the path of a daemon's log, to which its output is appended."""
    return paths.host_dir() / f"{name}.log"


def running(name: str) -> ProcessId | None:
    """Return the daemon of that name, if we started it and it still runs."""
    try:
        raw = json.loads(_record(name).read_text(encoding="utf-8"))
        process = ProcessId(int(raw["pid"]), int(raw["start_time"]), str(raw["boot_id"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return process if process.alive() else None


def ours() -> dict[str, ProcessId]:
    """Return the daemons that we started and that still run, the most recent first."""
    try:
        names = [path.stem.removeprefix(_PREFIX) for path in paths.host_dir().glob(f"{_PREFIX}*.json")]
    except OSError:
        return {}
    found = {name: process for name in names if (process := running(name))}
    return dict(sorted(found.items(), key=lambda item: item[1].start_time, reverse=True))


def start(
    name: str,
    argv: Sequence[str],
    *,
    ready: Callable[[], bool],
    environment: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> ProcessId:
    """Start a daemon, detached from this process, and wait until it is ready.

    The command must stay in the foreground. It gets a session of its own, `/` as working directory, default signals and
    a clean environment. If we started it before and it still runs, it is left as it is.

    Args:
        name: name of the record and the log.
        argv: the command; argv[0] is looked up on the administrator's PATH.
        ready: returns whether the daemon is ready; called repeatedly.
        environment: added to PATH, HOME and LANG.
        timeout: seconds to become ready.

    Raises:
        EngineError: it ended, or was not ready in time (then it is stopped).
        StoreError: the state directory cannot be written.
    """
    already = running(name)
    if already is not None:
        return already
    Store().ensure()
    process = _spawn(name, argv, {**_ENVIRONMENT, **(environment or {})})
    deadline = time.monotonic() + timeout
    while not ready():
        if not process.alive():
            _reap(process.pid)
            _record(name).unlink(missing_ok=True)
            raise EngineError(f"{name} ended right after it was started: {_last_line(name)}", f"see {log_path(name)}")
        if time.monotonic() > deadline:
            stop(name)
            raise EngineError(f"{name} was not ready within {timeout:.0f} s", f"see {log_path(name)}")
        time.sleep(_PAUSE)
    return process


def _spawn(name: str, argv: Sequence[str], environment: Mapping[str, str]) -> ProcessId:
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    defaults = [signal.SIGPIPE, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTERM, signal.SIGXFSZ]
    try:
        pid = os.posix_spawn(
            "/usr/bin/env",
            ["env", "-C", "/", *argv],
            dict(environment),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(log_path(name)), flags, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=defaults,  # Python ignores SIGPIPE, and ignored signals stay ignored across exec
        )
        process = ProcessId.of(pid)
        if process is None:
            _reap(pid)
            raise EngineError(f"{name} ended right after it was started: {_last_line(name)}", f"see {log_path(name)}")
        temporary = _record(name).with_suffix(".new")
        temporary.write_text(json.dumps({**asdict(process), "argv": list(argv)}), encoding="utf-8")
        temporary.replace(_record(name))
    except OSError as error:
        raise StoreError(f"{name} could not be started: {error.strerror}: {error.filename or argv[0]}") from error
    return process


def send(name: str, number: signal.Signals) -> bool:
    """Send a signal to a daemon that we started. Returns False if it does not run."""
    process = running(name)
    return process is not None and _send(process, number)


def _send(process: ProcessId, number: signal.Signals) -> bool:
    """Signal the process through a pidfd, which cannot refer to a new process with the same pid."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return False
    try:
        if not process.alive():
            return False
        signal.pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


def stop(name: str, grace: float = 30.0) -> bool:
    """Stop a daemon that we started: SIGTERM, and SIGKILL after `grace` seconds. Returns False if it did not run.

    Raises:
        EngineError: it still runs after SIGKILL.
    """
    process = running(name)
    if process is None:
        _record(name).unlink(missing_ok=True)
        return False
    for number, seconds in ((signal.SIGTERM, grace), (signal.SIGKILL, 5.0)):
        _send(process, number)
        deadline = time.monotonic() + seconds
        while process.alive() and time.monotonic() < deadline:
            time.sleep(_PAUSE)
        if not process.alive():
            _reap(process.pid)
            _record(name).unlink(missing_ok=True)
            return True
    raise EngineError(f"{name} (pid {process.pid}) did not end after SIGKILL", f"see {log_path(name)}")


def _record(name: str) -> Path:
    return paths.host_dir() / f"{_PREFIX}{name}.json"


def _reap(pid: int) -> None:
    """Reap the process if it is our child; otherwise init does."""
    with suppress(ChildProcessError):
        os.waitpid(pid, os.WNOHANG)


def _last_line(name: str) -> str:
    try:
        lines = log_path(name).read_text(encoding="utf-8", errors="replace").strip().splitlines()
    except OSError:
        return "it wrote no log"
    return lines[-1][-300:] if lines else "its log is empty"
