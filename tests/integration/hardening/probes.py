"""What is attempted, inside a sandbox and outside: the text of this module is handed to a Python there.

Standard library alone. `main` runs each attempt in a process of its own and says one line of JSON for each; nothing
here judges what came of it. Every attempt is harmless where it succeeds.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import mmap
import os
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable
from typing import Any

TAG = "hardening "
World = dict[str, Any]
"""What the careless parent left lying about for a sandbox to find; see `parent`."""

INHERITED: list[int] = []
"""Descriptors above 2 that this program was started with."""

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long


def reason(error: OSError) -> str:
    """An error's symbolic name."""
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def call(world: World, number: int, *arguments: int) -> str:
    """A system call with these arguments: "ok" or the error's name."""
    ctypes.set_errno(0)
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_ulong(one & (1 << 64) - 1) for one in arguments])
    return "ok" if result >= 0 else errno.errorcode.get(ctypes.get_errno(), "?")


def prctl(world: World, option: int, value: int = 0) -> int:
    """What prctl(2) answers, -1 for an error."""
    return int(libc.prctl(option, *[ctypes.c_ulong(one) for one in (value, 0, 0, 0)]))


def status(world: World, field: str) -> str:
    """A line of /proc/self/status."""
    with open("/proc/self/status", encoding="utf-8", errors="replace") as stream:
        return next((line.partition(":")[2].strip() for line in stream if line.startswith(field + ":")), "")


def text(world: World, path: str, size: int = 4096) -> list[Any]:
    """The beginning of a file, or the error."""
    try:
        with open(path, "rb") as stream:
            return ["read", stream.read(size).decode("utf-8", "replace")]
    except OSError as error:
        return ["refused", reason(error)]


def secret(world: World) -> list[str]:
    """The ways on which the host's secret file can be read."""
    found = []
    for way in ("", "/..", "/proc/1/root", "/proc/1/root/..", "/proc/1/cwd/..", "/proc/self/root/..", "/dev/../.."):
        with contextlib.suppress(OSError), open(way + world["file"], encoding="utf-8") as stream:
            if stream.read() == world["secret"]:
                found.append(way or "/")
    return found


def descriptors(world: World) -> list[str]:
    """Each inherited descriptor, and whether the host's secret can be read by way of it."""
    found = []
    for number in INHERITED:
        said = "open"
        with contextlib.suppress(OSError):
            os.fchdir(number)
            with open(world["file"].lstrip("/"), encoding="utf-8") as stream:
                if stream.read() == world["secret"]:
                    said = "secret"
        found.append(f"{number} {said}")
    return found


def directory(world: World) -> bool:
    """Whether the working directory is outside the root, so that the host's secret is below it."""
    try:
        with open(world["file"].rpartition("/")[2], encoding="utf-8") as stream:
            return bool(stream.read() == world["secret"])
    except OSError:
        return False


def mounts(world: World, flag: str) -> list[str]:
    """Mount points without an option (proc_pid_mountinfo(5))."""
    with open("/proc/self/mountinfo", encoding="utf-8") as stream:
        lines = [line.split() for line in stream]
    return [fields[4] for fields in lines if flag not in fields[5].split(",")]


def propagation(world: World) -> list[str]:
    """Mounts that send or receive what is mounted elsewhere (mount_namespaces(7), optional fields)."""
    with open("/proc/self/mountinfo", encoding="utf-8") as stream:
        return [line.split()[4] for line in stream if line.split(" - ")[0].split()[6:]]


def devices(world: World) -> list[str]:
    """Device nodes below /dev that can be opened, as "c 1:3"; opening is harmless for the kinds that are asked for."""
    found = set()
    for folder, names, files in os.walk("/dev"):
        for name in (*names, *files):
            with contextlib.suppress(OSError):
                seen = os.lstat(os.path.join(folder, name))
                if stat.S_ISBLK(seen.st_mode) or stat.S_ISCHR(seen.st_mode):
                    kind = "b" if stat.S_ISBLK(seen.st_mode) else "c"
                    found.add(f"{kind} {os.major(seen.st_rdev)}:{os.minor(seen.st_rdev)}")
    return sorted(found)


def processes(world: World) -> bool:
    """Whether the host's process is to be seen in /proc, by the last of its arguments."""
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and entry != str(os.getpid()):
                with open(f"/proc/{entry}/cmdline", "rb") as stream:
                    if stream.read().split(b"\0")[-2:-1] == [world["word"].encode()]:
                        return True
    return False


def masked(world: World, path: str) -> list[Any]:
    """Whether a path of /proc or /sys is itself, and what can be got from it."""
    try:
        seen = os.stat(path)
    except OSError as error:
        return ["absent", reason(error)]
    if stat.S_ISDIR(seen.st_mode):
        kind = "itself" if seen.st_dev == os.stat(os.path.dirname(path)).st_dev else "covered"
        try:
            return [kind, len(os.listdir(path))]
        except OSError:
            return [kind, 0]
    kind = "covered" if stat.S_ISCHR(seen.st_mode) else "itself"
    try:
        with open(path, "rb") as stream:
            return [kind, len(stream.read(64))]
    except OSError:
        return [kind, 0]


def writable(world: World, path: str) -> list[Any]:
    """Whether a path is mounted for writing, and a file there that can be opened for writing (nothing is written)."""
    try:
        kind = "ro" if os.statvfs(path).f_flag & os.ST_RDONLY else "rw"
    except OSError as error:
        return ["absent", reason(error)]
    deadline = time.monotonic() + 1.0
    for folder, _, files in os.walk(path):
        for name in files:
            with contextlib.suppress(OSError):
                os.close(os.open(os.path.join(folder, name), os.O_WRONLY | os.O_NONBLOCK))
                return [kind, os.path.join(folder, name)]
        if time.monotonic() > deadline:
            break
    return [kind, None]


def create(world: World, *paths: str) -> list[str]:
    """The error of making a file at each path."""
    found = []
    for path in paths:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            os.unlink(path)
            found.append("made")
        except OSError as error:
            found.append(reason(error))
    return found


def fill(world: World, path: str, size: int) -> str:
    """Allocate so many bytes in a directory, which for a tmpfs takes memory at once."""
    name = f"{path}/fill-{os.getpid()}"
    try:
        number = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except OSError as error:
        return "closed: " + reason(error)
    try:
        os.posix_fallocate(number, 0, size)
        return "filled"
    except OSError as error:
        return reason(error)
    finally:
        os.unlink(name)


def terminal(world: World) -> str:
    """Open the terminal of the session: that of whoever started this, if the session is his."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR))
    except OSError as error:
        return reason(error)
    return "opened"


def keyring(world: World, number: int) -> str:
    """Look for the parent's key in the session keyring (keyctl(2), KEYCTL_SEARCH)."""
    search, session = 10, -3
    kind, name = ctypes.create_string_buffer(b"user"), ctypes.create_string_buffer(world["key"].encode())
    return call(world, number, search, session, ctypes.addressof(kind), ctypes.addressof(name), 0)


def environment(world: World) -> list[str]:
    """The names in the environment."""
    return sorted(os.environ)


def init(world: World) -> str:
    """The name of process 1."""
    return str(text(world, "/proc/1/comm")[1]).strip()


def orphan(world: World) -> bool:
    """Whether an orphan that ends stays a zombie."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        inner = os.fork()
        if inner == 0:
            time.sleep(0.05)
            os._exit(0)
        os.write(writer, str(inner).encode())
        os._exit(0)
    os.waitpid(child, 0)
    inner = int(os.read(reader, 20))
    time.sleep(0.3)
    return os.path.exists(f"/proc/{inner}/stat")


def alive(world: World) -> str:
    """Whether a process of the host can be named, by the number that it has there."""
    try:
        os.kill(world["pid"], 0)
    except OSError as error:
        return reason(error)
    return "there"


def abstract(world: World) -> str:
    """Connect to an abstract Unix socket of the host: those belong to a network namespace."""
    try:
        with socket.socket(socket.AF_UNIX) as attempt:
            attempt.connect("\0" + world["socket"])
    except OSError as error:
        return reason(error)
    return "connected"


def links(world: World) -> list[str]:
    """The names of all links."""
    return sorted(name for _, name in socket.if_nameindex())


def route(world: World) -> str:
    """Ask the routing table for a documentation address (RFC 5737); nothing is sent."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attempt:
            attempt.connect(("192.0.2.1", 9))
    except OSError as error:
        return reason(error)
    return "there is one"


def shared_memory(world: World) -> str:
    """Find the host's System V segment by its key."""
    libc.shmget.restype = ctypes.c_int
    ctypes.set_errno(0)
    found = libc.shmget(ctypes.c_int(world["ipc"]), ctypes.c_size_t(0), ctypes.c_int(0))
    return "found" if found >= 0 else errno.errorcode.get(ctypes.get_errno(), "?")


def hostname(world: World) -> str:
    """The name of this machine."""
    return os.uname().nodename


def clock(world: World) -> list[Any]:
    """The time namespace, and the seconds since the boot that its clock shows."""
    return [os.readlink("/proc/self/ns/time"), time.clock_gettime(time.CLOCK_BOOTTIME)]


def forks(world: World, count: int) -> int:
    """How many children can be had at once, up to a count."""
    reader, writer = os.pipe()
    made: list[int] = []
    try:
        while len(made) < count:
            child = os.fork()
            if child == 0:
                os.close(writer)
                signal.alarm(30)
                os.read(reader, 1)
                os._exit(0)
            made.append(child)
    except OSError:
        pass
    os.close(writer)
    for child in made:
        os.waitpid(child, 0)
    return len(made)


def memory(world: World, size: int) -> str:
    """Take memory and touch it; the process that does it is the one to be killed if one has to be."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:
            stream.write("1000")
        area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for page in range(0, size, mmap.PAGESIZE):
            area[page] = 1
        os.write(writer, b"x")
        os._exit(0)
    os.close(writer)
    got = os.read(reader, 1)
    os.waitpid(child, 0)
    return "got it" if got else "killed"


ATTEMPTS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        *(call, prctl, status, text, secret, descriptors, directory, mounts, propagation, devices, processes, masked),
        *(writable, create, fill, terminal, keyring, environment, init, orphan, alive, abstract, links, route),
        *(shared_memory, hostname, clock, forks, memory),
    )
}


def attempt(world: World, name: str, arguments: list[Any]) -> Any:
    """Run one in a child, which may die of it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        try:
            answer = ATTEMPTS[name](world, *arguments)
        except BaseException as error:
            answer = {"raised": f"{type(error).__name__} {error}"}
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    said = b""
    while piece := os.read(reader, 65536):
        said += piece
    os.close(reader)
    _, code = os.waitpid(child, 0)
    return json.loads(said) if said else {"died": os.waitstatus_to_exitcode(code)}


def main() -> None:
    """Run what standard arguments ask for: the world, and pairs of a case's name and its attempt."""
    for number in range(3, 256):
        with contextlib.suppress(OSError):
            os.fstat(number)
            INHERITED.append(number)
    asked = json.loads(sys.argv[1])
    for name, (function, *arguments) in asked["cases"].items():
        said = {"case": name, "answer": attempt(asked["world"], function, arguments)}
        os.write(1, (TAG + json.dumps(said) + "\n").encode())
    os.write(1, (TAG + json.dumps({"case": None}) + "\n").encode())
    if asked["linger"]:
        while True:
            signal.pause()


if __name__ == "__main__":
    main()
