"""Register the runtime runsc in the configuration of dockerd, and keep the settings of others."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from sandbox.errors import EngineError, SandboxError, UnavailableError
from sandbox.host import daemons
from sandbox.host.docker import DEFAULT_SOCKET, Engine, socket_path
from sandbox.host.docker_check import RUNTIME, RUNTIME_ARGS, registered
from sandbox.host.programs import which
from sandbox.state import paths
from sandbox.state.processid import start_time

NAME = "dockerd"
SYSTEM_CONFIG = Path("/etc/docker/daemon.json")
SYSTEM_PID = Path("/var/run/docker.pid")
CONTAINERD_PID = Path("/var/run/docker/containerd/containerd.pid")
_RELOAD_TIMEOUT = 10.0


def chosen() -> bool:
    """Return whether the docker command would use this host's own dockerd, which can be started here."""
    try:
        return socket_path() == DEFAULT_SOCKET
    except UnavailableError:
        return False


def own_config() -> Path:
    """Return the path of the configuration of a dockerd that we start."""
    return paths.host_dir() / "dockerd.json"


def entry() -> dict[str, Any]:
    """Return the registration of runsc; empty if it is not installed."""
    path = which(RUNTIME)
    return {RUNTIME: {"path": path, "runtimeArgs": list(RUNTIME_ARGS)}} if path else {}


def advice() -> str:
    """Return the advice for a configuration that is not ours."""
    return f'add to {SYSTEM_CONFIG}: "runtimes": {json.dumps(entry())}, and reload dockerd'


def merged(theirs: dict[str, Any]) -> dict[str, Any]:
    """Add our runtime to an existing configuration, unless that has a runtime of this name."""
    runtimes = {**entry(), **(theirs.get("runtimes") or {})}
    return {**theirs, "runtimes": runtimes} if runtimes else dict(theirs)


def start() -> str:
    """Start a dockerd of our own, with the host's configuration and runsc.

    Returns:
        One line about what was done.

    Raises:
        EngineError: the host's configuration is not JSON, or dockerd does not start.
    """
    _write(own_config(), merged(_theirs()))
    _sweep()

    def ready() -> bool:
        try:
            Engine(DEFAULT_SOCKET).version()
        except SandboxError:
            return False
        return True

    process = daemons.start(NAME, [NAME, "--config-file", str(own_config())], ready=ready)
    return f"started dockerd (pid {process.pid}, log {daemons.log_path(NAME)})"


def register() -> tuple[str | None, str | None]:
    """Register runsc with a running dockerd.

    Returns:
        One line about what was done, or one about what the administrator has to do; the other is None.

    Raises:
        EngineError: the configuration cannot be written or read.
        UnavailableError: dockerd does not answer after its reload.
    """
    engine = Engine()
    if not chosen():
        return None, f"for dockerd at {engine}: {advice()}"
    if daemons.running(NAME) is not None:
        _write(own_config(), merged(_theirs()))
        daemons.send(NAME, signal.SIGHUP)
        where = own_config()
    elif SYSTEM_CONFIG.exists() and RUNTIME not in (_theirs().get("runtimes") or {}):
        return None, advice()
    elif SYSTEM_CONFIG.exists():  # the entry exists, but dockerd has not read it
        _reload()
        where = SYSTEM_CONFIG
    else:
        _write(SYSTEM_CONFIG, {"runtimes": entry()})
        _reload()
        where = SYSTEM_CONFIG
    deadline = time.monotonic() + _RELOAD_TIMEOUT
    while time.monotonic() < deadline:
        if registered(engine) is not None:
            return f"registered the runtime runsc with dockerd ({where})", None
        time.sleep(0.1)
    return None, f"{where} is written, but dockerd did not read it: restart dockerd"


def _sweep() -> None:
    """Remove stale pid files.

    They remain after a SIGKILL, and in a copy of a machine. dockerd takes any process with this pid, even a zombie, for
    its predecessor and refuses to start, or for its containerd and waits for it in vain.
    """
    for path, name in ((SYSTEM_PID, NAME), (CONTAINERD_PID, "containerd")):
        try:
            pid = int(path.read_text(encoding="ascii"))
            comm = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
            lives = comm == name and start_time(pid) is not None
        except (OSError, ValueError):
            lives = False
        if not lives:
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _theirs() -> dict[str, Any]:
    try:
        found = json.loads(SYSTEM_CONFIG.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise EngineError(f"{SYSTEM_CONFIG} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise EngineError(f"{SYSTEM_CONFIG} is not a JSON object")
    return found


def _write(path: Path, content: dict[str, Any]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        temporary = path.with_name(f".{path.name}.new")
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise EngineError(f"{path} cannot be written: {error.strerror}") from error


def _reload() -> None:
    """Make the daemon reload its configuration, which includes `runtimes` (dockerd(8)).

    The signal is sent from here under systemd too: Debian's unit reloads with /bin/kill, which small systems lack.
    """
    try:
        pid = int(SYSTEM_PID.read_text(encoding="ascii"))
        if Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip() != NAME:
            raise EngineError(f"{SYSTEM_PID} does not name a dockerd", "restart dockerd")
        os.kill(pid, signal.SIGHUP)
    except (OSError, ValueError) as error:
        raise EngineError(f"dockerd could not be told to reload: {error}", "restart dockerd") from error
