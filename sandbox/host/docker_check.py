"""Check that dockerd answers, and that it runs containers under gVisor."""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sandbox.errors import EngineError, SandboxError, UnavailableError
from sandbox.host import verdicts
from sandbox.host.distribution import FIX, remedy
from sandbox.host.docker import Engine, RefusalError
from sandbox.host.finding import Finding
from sandbox.host.programs import which
from sandbox.state.store import named_lock

RUNTIME = "runsc"
RUNTIME_ARGS = ("--network=host",)
"""Make gVisor use the network stack of the container's namespace. Without this, Debian's runsc refuses to start."""
PROBE = "sandbox-doctor-probe"
"""Name of the image and container of the test."""
_TRIAL_TIMEOUT = 30
"""Seconds."""
_OUTCOME = 42
_NOT_FOUND = 404


def daemon() -> Finding:
    """Check that the Docker daemon answers."""
    name = "docker.daemon"
    try:
        engine = Engine()
        return Finding(name, True, f"Docker {engine.version().docker} at {engine}")
    except SandboxError as error:
        return Finding(name, False, error.message, error.hint or "the log of dockerd says more")


def registered(engine: Engine) -> dict[str, Any] | None:
    """Get the registration of the runtime runsc with an engine, or None.

    Raises:
        EngineError, UnavailableError: the daemon does not answer, or its answer is malformed.
    """
    found = (_info(engine).get("Runtimes") or {}).get(RUNTIME)
    return found if isinstance(found, dict) else None


def _info(engine: Engine) -> dict[str, Any]:
    found = engine.look("/info", "dockerd does not describe itself")
    if found is None:
        raise EngineError(f"dockerd at {engine} does not describe itself")
    return found


def runsc() -> Finding:
    """Check that gVisor's runtime is registered with the daemon, and runs a container."""
    name = "docker.runsc"
    try:
        engine = Engine()
        entry = registered(engine)
    except SandboxError as error:
        return Finding(name, False, "there is no Docker daemon to run it", error.hint or remedy("docker.daemon"))
    if entry is None:
        if which(RUNTIME) is None:
            return Finding(name, False, "gVisor is not installed (no runsc)", remedy(name))
        return Finding(name, False, "Docker does not know the runtime runsc", FIX)
    found = _runsc_verdict(engine, entry)
    if found.works:
        return Finding(name, True, found.reason)
    arguments = entry.get("runtimeArgs") or []
    if not set(RUNTIME_ARGS) <= set(arguments):
        fix = f'give the runtime runsc "runtimeArgs": {json.dumps(RUNTIME_ARGS)} in the configuration of dockerd'
        return Finding(name, False, found.reason, fix)
    return Finding(name, False, found.reason, f"the log of dockerd says more; runsc is {entry.get('path')}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a test of gVisor, with the reason."""

    works: bool
    reason: str


def _runsc_verdict(engine: Engine, entry: dict[str, Any]) -> Verdict:
    path = which(str(entry.get("path") or RUNTIME)) or RUNTIME
    key = json.dumps([str(engine), _info(engine).get("ID"), entry, verdicts.file_identity(path)], sort_keys=True)
    known = _recall(key)
    if known is not None:
        return known
    try:
        with named_lock("runsc"):
            found = _recall(key) or try_runtime(engine, RUNTIME)
            if found.works:  # a failure may be temporary, such as a full disk
                verdicts.remember("runsc", key, asdict(found))
            return found
    except SandboxError:
        return Verdict(False, "the state directory cannot be written, so it was not tried")


def _recall(key: str) -> Verdict | None:
    known = verdicts.recall("runsc", key)
    try:
        return None if known is None else Verdict(bool(known["works"]), str(known["reason"]))
    except KeyError:
        return None


def try_runtime(engine: Engine, runtime: str, *, network: str = "bridge", name: str = PROBE) -> Verdict:
    """Run a container with one program that exits with a known code, and remove it and its image.

    Args:
        engine: the daemon.
        runtime: name of the runtime, as registered with the daemon.
        network: Docker's name of the container's network.
        name: name of the container and its image; what a killed test left under this name is removed first.
    """
    container = ""
    null = os.stat(os.devnull)
    settings = {
        "Image": f"{name}:latest",
        "Entrypoint": ["/probe"],
        "Labels": {"org.sandbox.probe": "1"},
        "HostConfig": {
            "Runtime": runtime,
            "NetworkMode": network,
            "Memory": 128 * 1024 * 1024,
            "CapDrop": ["ALL"],
            "LogConfig": {"Type": "none"},
        },
    }
    try:
        _remove(engine, name)
        with engine.talking(f"a container under {runtime} does not start") as api:
            api.import_image_from_data(_image(), repository=name, tag="latest")
            container = api.create_container_from_config(settings, name)["Id"]
            api.start(container)
            code = api.wait(container, timeout=_TRIAL_TIMEOUT)["StatusCode"]
    except (EngineError, UnavailableError) as error:
        return Verdict(False, error.message)
    finally:
        with suppress(EngineError, UnavailableError):  # the result is valid; the next test removes what is left
            _remove(engine, name)
        if container:
            _end_strays(container)
        _give_back(null)
    if code != _OUTCOME:
        return Verdict(False, f"a container under {runtime} exited with {code} instead of {_OUTCOME}")
    return Verdict(True, f"{runtime} ran a container")


def _give_back(null: os.stat_result) -> None:
    """Restore the owner of the host's /dev/null.

    It is the standard input of the container, and runsc without `--network=host` gives it to the user `nobody`, as
    which its sandbox runs. If /dev is sticky, even root may then not write to it.
    """
    now = os.stat(os.devnull)
    if (now.st_uid, now.st_gid) != (null.st_uid, null.st_gid):
        with suppress(PermissionError):  # not root, so we did not change it either
            os.chown(os.devnull, null.st_uid, null.st_gid)


def _remove(engine: Engine, name: str) -> None:
    what = "the container of the gVisor test cannot be removed"
    with _gone_is_fine(), engine.talking(what) as api:
        api.remove_container(name, force=True, v=True)
    with _gone_is_fine(), engine.talking(what) as api:
        api.remove_image(f"{name}:latest", force=True)


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    try:
        yield
    except RefusalError as error:
        if error.status != _NOT_FOUND:
            raise


def _end_strays(container: str) -> None:
    """Kill processes that still run for a removed container.

    If the runtime fails between create and start, Docker 20.10 forgets the container but leaves its shim, and runsc its
    sandbox and gofer. Each has the container's id (64 hex digits, never reused) in its command line.
    """
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            descriptor = os.pidfd_open(int(entry.name))
            try:
                if container.encode() in (entry / "cmdline").read_bytes():
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            finally:
                os.close(descriptor)


def _image() -> bytes:
    """Return a tar archive with one static program, /probe."""
    program = _program()
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as archive:
        member = tarfile.TarInfo("probe")
        member.size, member.mode = len(program), 0o755
        archive.addfile(member, io.BytesIO(program))
    return target.getvalue()


def _program() -> bytes:
    """Return an x86-64 ELF file, elf(5), that exits with `_OUTCOME`, so that the test needs no image or compiler."""
    code = b"\xbf" + struct.pack("<I", _OUTCOME) + b"\xb8\x3c\0\0\0" + b"\x0f\x05"  # mov edi; mov eax, exit; syscall
    base, headers = 0x400000, 64 + 56
    size = headers + len(code)
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    elf = identity + struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, base + headers, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return elf + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, size, size, 0x1000) + code
