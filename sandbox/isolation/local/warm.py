"""Start and stop the zygote of the level `namespace`, and request children from it.

One zygote serves all reference servers and limits, since everything that differs between sandboxes is in the request.
It runs in the root filesystem's interpreter (`sandbox.kernel.zygote`), and is started only by `sandbox warm`. Its
socket and identity are in the state directory, which only root can access.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import sandbox
from sandbox.errors import EngineError, UnavailableError
from sandbox.kernel import syscalls, walls, zygote
from sandbox.state import paths
from sandbox.state.processid import ProcessId

SOCKET_FILE = "zygote.sock"
IDENTITY_FILE = "zygote.json"
LOG_FILE = "zygote.log"
"""The zygote's stderr; usually empty."""
_LIBRARY = "/mnt"
"""An empty directory of the root filesystem, where this package is mounted while the zygote starts."""
_START_SECONDS = 20.0
_ANSWER_SECONDS = 10.0
_END_SECONDS = 2.0

_PROGRAM = """
import sys
sys.path[:0] = ["/mnt", "/opt/sandbox"]
sys.path.append("/usr/lib/python3/dist-packages")
import pkgutil, traceback, workloads.servers
for module in pkgutil.iter_modules(workloads.servers.__path__):
    __import__("workloads.servers." + module.name)
from workloads import application, command, net, settings
from workloads.rpc import services
from sandbox.kernel import zygote
sys.path.remove("/mnt")
zygote.main(lambda arguments: command.main(arguments))
"""


def start(root: str, digest: str) -> ProcessId:
    """Start the zygote, or return the running one; one of another root filesystem is replaced.

    Args:
        root: the directory of the root filesystem.
        digest: of the root filesystem.

    Raises:
        EngineError: it does not start.
    """
    if (there := running(digest)) is not None:
        return there
    stop()
    path = _socket_path()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(128)
        pid = _launch(root, listener)
    except OSError as error:
        raise EngineError(f"the zygote cannot be started: {error}") from error
    finally:
        listener.close()
    made = ProcessId.of(pid)
    if made is None:
        raise EngineError("the zygote ended at once", "sandbox images verify")
    identity = {"pid": made.pid, "start_time": made.start_time, "boot_id": made.boot_id, "digest": digest}
    (paths.host_dir() / IDENTITY_FILE).write_text(json.dumps(identity), encoding="ascii")
    try:
        _talk(zygote.PING, [], _START_SECONDS)
    except OSError as error:
        words = (paths.host_dir() / LOG_FILE).read_text(encoding="utf-8", errors="replace").strip()
        stop()
        raise EngineError(f"the zygote does not answer: {words.rpartition(chr(10))[2] or error}") from error
    return made


def running(digest: str | None = None) -> ProcessId | None:
    """Return the running zygote, with a digest only if it is of that root filesystem; else None."""
    try:
        raw = json.loads((paths.host_dir() / IDENTITY_FILE).read_text(encoding="ascii"))
        found = ProcessId(int(raw["pid"]), int(raw["start_time"]), str(raw["boot_id"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not found.alive() or (digest is not None and raw.get("digest") != digest):
        return None
    return found


def stop() -> bool:
    """Stop the zygote and remove its files; return False if none was running. Its sandboxes keep running.

    Raises:
        EngineError: it does not exit.
    """
    found = running()
    if found is not None:
        with suppress(ProcessLookupError):
            pidfd = os.pidfd_open(found.pid)
            try:
                if found.alive():
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    poller = select.poll()
                    poller.register(pidfd, select.POLLIN)
                    if not poller.poll(_END_SECONDS * 1000):
                        raise EngineError(f"the zygote, process {found.pid}, does not exit")
            finally:
                os.close(pidfd)
    for name in (SOCKET_FILE, IDENTITY_FILE, LOG_FILE):
        (paths.host_dir() / name).unlink(missing_ok=True)
    return found is not None


def asker(request: bytes, status: int) -> Callable[[list[int]], int]:
    """Return the function `ask` for `enter.spawn_warm`, which requests a child from the zygote.

    Args:
        request: the result of `zygote.pack`.
        status: the pipe that the zygote writes the child's exit code to.
    """

    def ask(descriptors: list[int]) -> int:
        try:
            answer = _talk(request, [*descriptors, status], _ANSWER_SECONDS)
        except (FileNotFoundError, ConnectionRefusedError):
            raise UnavailableError("no zygote runs, so there is no warm start", "sandbox warm") from None
        except OSError as error:
            raise EngineError(f"the zygote does not answer: {error}", "sandbox warm --stop; sandbox warm") from None
        if not answer:
            raise EngineError("the zygote could not create a child", "sandbox warm --stop; sandbox warm")
        return int(answer)

    return ask


def _talk(request: bytes, descriptors: list[int], timeout: float) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(timeout)
        connection.connect(str(_socket_path()))
        socket.send_fds(connection, [request], descriptors)
        return connection.recv(64)


def _socket_path() -> Path:
    return paths.host_dir() / SOCKET_FILE


def _launch(root: str, listener: socket.socket) -> int:
    """Start the zygote by a double fork, so that it is not our child; return its pid once its exec has happened."""
    reading, writing = os.pipe()
    first = os.fork()
    if first == 0:
        try:
            if os.fork():
                os._exit(0)
            _be_zygote(root, listener.fileno(), writing)
        except BaseException as error:
            with suppress(OSError):
                os.write(writing, f"E{error}".encode())
        finally:
            os._exit(127)
    os.close(writing)
    try:
        os.waitpid(first, 0)
        said = _read_until(reading, time.monotonic() + _START_SECONDS)
    finally:
        os.close(reading)
    if not said.startswith(b"P") or b"E" in said:
        raise OSError(0, said.partition(b"E")[2].decode("utf-8", "replace") or "it ended without a message")
    return int(said[1:])


def _read_until(descriptor: int, deadline: float) -> bytes:
    """Read up to the end of the pipe, which the zygote closes by its exec."""
    said = b""
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    while poller.poll(max(deadline - time.monotonic(), 0) * 1000):
        chunk = os.read(descriptor, 4096)
        if not chunk:
            return said
        said += chunk
    return b"Eit takes too long"


def _be_zygote(root: str, listener: int, report: int) -> NoReturn:
    """In the grandchild: change the root to the root filesystem, with this package mounted, and run its interpreter."""
    os.setsid()
    os.umask(0o022)
    walls.default_signals()
    spare = [os.dup(one) for one in (listener, os.open("/proc/self/ns/mnt", os.O_RDONLY))]
    kept = os.dup(report)
    null = os.open("/dev/null", os.O_RDWR)
    log = os.open(paths.host_dir() / LOG_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for descriptor, source in ((0, null), (1, null), (2, log)):
        os.dup2(source, descriptor)
    moved = [os.dup2(one, 10 + number) for number, one in enumerate((*spare, kept))]
    os.dup2(moved[0], zygote.LISTENER_FD)
    os.dup2(moved[1], zygote.HOST_MOUNTS_FD)
    os.dup2(moved[2], 5, inheritable=False)
    syscalls.close_from(6)
    syscalls.unshare(syscalls.CLONE_NEWNS)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
    library = f"{root}{_LIBRARY}"
    syscalls.mount("tmpfs", library, "tmpfs", flags, "size=64k,mode=755")
    package = Path(sandbox.__file__).parent
    os.mkdir(f"{library}/{package.name}")
    syscalls.mount(str(package), f"{library}/{package.name}", None, syscalls.MS_BIND)
    os.chroot(root)
    os.chdir("/")
    os.write(5, f"P{os.getpid()}".encode())
    argv = ["/usr/bin/python3", "-I", "-S", "-B", "-c", _PROGRAM]
    os.execve(argv[0], argv, {"LANG": "C.UTF-8"})  # noqa: S606 - no shell is the point
