"""The probe: a program that runs inside a sandbox. Its source is passed to the sandbox's own Python.

It uses only the standard library of Python 3.11, and no files of its own. It is told what to look for, and answers with
lines of JSON on standard output, each after TAG. It gets the host's secrets only as hashes, so it can name one only if
it has really seen it. What it tries is harmless if it succeeds: a read, a signal that is ignored by default, a
connection that sends a random word.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import secrets
import signal
import socket
import stat
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

TAG = "sandbox-probe "
PAGE_OF_DISK = 4096
MAX_NODES = 256
CONNECT_TIMEOUT = 1.0
CALLS: dict[str, tuple[dict[str, int], tuple[int, ...]]] = {
    "unshare": ({"x86_64": 272, "aarch64": 97}, (0,)),
    "keyctl": ({"x86_64": 250, "aarch64": 219}, (0, 0xFFFFFFFD, 0)),
    "io_uring_setup": ({"x86_64": 425, "aarch64": 425}, (0, 0)),
    "userfaultfd": ({"x86_64": 323, "aarch64": 282}, (1,)),
    "personality": ({"x86_64": 135, "aarch64": 92}, (0x0040000,)),
}
"""Number and arguments of system calls, by name. They need no privilege and change only this process."""
RISKY_TO_OPEN = ("watchdog", "snapshot", "cpu_dma_latency", "st", "nst")
"""Devices that act when they are opened or closed: arm a reset, prepare hibernation, keep CPUs awake, rewind a tape."""


def say(answer: dict[str, Any]) -> None:
    """Print an answer as one line of JSON."""
    os.write(1, (TAG + json.dumps(answer) + "\n").encode())


def reason(error: OSError) -> str:
    """Return the symbolic name of an error."""
    return errno.errorcode.get(error.errno or 0, type(error).__name__)


def read(path: str, limit: int = 65536) -> str | None:
    """Return the text of a small file, or None if it cannot be read."""
    try:
        with open(path, "rb") as stream:
            return stream.read(limit).decode("utf-8", "replace")
    except OSError:
        return None


def digest(data: bytes) -> str:
    """Return the SHA-256 in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def status() -> dict[str, int]:
    """Return the status of this process by the kernel inside: capability sets, no_new_privs, seccomp."""
    found = {}
    for line in (read("/proc/self/status") or "").splitlines():
        name, _, value = line.partition(":")
        if name.startswith("Cap") or name in ("NoNewPrivs", "Seccomp"):
            found[name] = int(value, 16 if name.startswith("Cap") else 10)
    return found


def namespaces() -> dict[str, str]:
    """Return the links of /proc/self/ns."""
    found = {}
    try:
        names = os.listdir("/proc/self/ns")
    except OSError:
        return {}
    for name in names:
        try:
            found[name] = os.readlink(f"/proc/self/ns/{name}")
        except OSError as error:
            found[name] = reason(error)
    return found


def machine() -> dict[str, Any]:
    """Return the kernel, CPUs and memory as seen from inside."""
    total = None
    for line in (read("/proc/meminfo") or "").splitlines():
        if line.startswith("MemTotal:"):
            total = int(line.split()[1]) * 1024
    boot_id = read("/proc/sys/kernel/random/boot_id")
    return {
        "uid": os.getuid(),
        "boot_id": boot_id.strip() if boot_id else None,
        "release": os.uname().release,
        "status": status(),
        "namespaces": namespaces(),
        "affinity": len(os.sched_getaffinity(0)),
        "online": os.sysconf("SC_NPROCESSORS_ONLN"),
        "memory": total,
    }


def processes(marker_hash: str, marker_pid: int) -> dict[str, Any]:
    """Look for a process of the host by a word in its arguments, and send it a signal by its pid."""
    seen, marker = 0, None
    try:
        entries = os.listdir("/proc")
    except OSError:
        entries = []
    for entry in entries:
        if not entry.isdigit():
            continue
        seen += 1
        for word in (read(f"/proc/{entry}/cmdline") or "").split("\0"):
            if digest(word.encode()) == marker_hash:
                marker = word
    try:
        os.kill(marker_pid, signal.SIGURG)  # ignored by a process that has this pid inside
        signalled = "sent"
    except OSError as error:
        signalled = reason(error)
    return {"processes": seen, "marker": marker, "signalled": signalled}


def outside_chroot(path: str) -> bytes:
    """Read a file after leaving a chroot, which root can do: chroot(2) does not change the working directory."""
    inner = f"/tmp/{secrets.token_hex(8)}"  # noqa: S108 - inside the sandbox, a name of our own
    os.mkdir(inner)
    try:
        os.chdir("/")
        os.chroot(inner)
        for _ in range(64):
            os.chdir("..")
        os.chroot(".")
        with open(path, "rb") as stream:
            return stream.read(PAGE_OF_DISK)
    finally:
        os.rmdir(inner) if os.path.isdir(inner) else None


def in_child(action: Callable[[], bytes]) -> bytes:
    """Run a function that changes the root in a child. Returns its bytes or raises its OSError."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(writer, b"+" + action())
        except OSError as error:
            os.write(writer, f"-{error.errno}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        answer = stream.read()
    os.waitpid(child, 0)
    if answer.startswith(b"+"):
        return answer[1:]
    code = int(answer[1:] or errno.EIO)
    raise OSError(code, os.strerror(code))


def ways_to(path: str, marker_pid: int) -> dict[str, Callable[[], bytes]]:
    """Return the ways to try to read a file of the host, by name."""

    def plain(name: str) -> Callable[[], bytes]:
        def action() -> bytes:
            with open(name, "rb") as stream:
                return stream.read(PAGE_OF_DISK)

        return action

    ways = {
        "path": plain(path),
        "/proc/1/root": plain(f"/proc/1/root{path}"),
        "/proc/<pid>/root": plain(f"/proc/{marker_pid}/root{path}"),
    }
    if os.getuid() == 0:
        ways["out of the chroot"] = lambda: in_child(lambda: outside_chroot(path))
    return ways


def files(path: str, marker_pid: int) -> dict[str, str]:
    """Try each way to read a file of the host. Returns the text or the error of each."""
    found = {}
    for way, action in ways_to(path, marker_pid).items():
        try:
            found[way] = action()[:128].decode("utf-8", "replace")
        except OSError as error:
            found[way] = reason(error)
    return found


def nodes() -> list[dict[str, Any]]:
    """Return the device nodes below /dev, and whether each can be opened for reading."""
    found: list[dict[str, Any]] = []
    for folder, subfolders, names in os.walk("/dev"):
        subfolders[:] = [name for name in subfolders if folder.count("/") < 3]
        for name in sorted(names):
            path = os.path.join(folder, name)
            try:
                mode = os.lstat(path)
            except OSError:
                continue
            if not (stat.S_ISCHR(mode.st_mode) or stat.S_ISBLK(mode.st_mode)) or len(found) >= MAX_NODES:
                continue
            number = f"{os.major(mode.st_rdev)}:{os.minor(mode.st_rdev)}"
            kind = "b" if stat.S_ISBLK(mode.st_mode) else "c"
            opened = False
            if name.rstrip("0123456789") not in RISKY_TO_OPEN:
                try:
                    os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY))
                    opened = True
                except OSError:
                    opened = False
            found.append({"name": path[5:], "kind": kind, "number": number, "opened": opened})
    return found


def disk(name: str, major: int, minor: int, marker_pid: int) -> dict[str, str]:
    """Try each way to read a block device of the host. Returns the hash of its first page or the error of each."""

    def page(path: str) -> str:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            data = os.pread(descriptor, PAGE_OF_DISK, 0)
            return digest(data) if data else "empty"
        finally:
            os.close(descriptor)

    def made_in(folder: str) -> str:
        path = f"{folder}/{secrets.token_hex(8)}"
        os.mknod(path, stat.S_IFBLK | 0o600, os.makedev(major, minor))
        try:
            return page(path)
        finally:
            os.unlink(path)

    found = {}
    nodes = {"node": "", "/proc/1/root": "/proc/1/root", "/proc/<pid>/root": f"/proc/{marker_pid}/root"}
    for way, root in nodes.items():
        try:
            found[way] = page(f"{root}/dev/{name}")
        except OSError as error:
            found[way] = reason(error)
    for folder in ("/dev/shm", "/tmp", "/run", ""):  # noqa: S108 - inside the sandbox
        try:
            found[f"mknod in {folder or '/'}"] = made_in(folder)
        except OSError as error:
            found[f"mknod in {folder or '/'}"] = reason(error)
    return found


def calls() -> dict[str, str]:
    """Try system calls that a filter should refuse. Returns "ok" or the error of each."""
    libc = ctypes.CDLL(None, use_errno=True)
    found = {}
    for name, (numbers, values) in CALLS.items():
        number = numbers.get(os.uname().machine)
        if number is None:
            continue
        ctypes.set_errno(0)
        result = libc.syscall(ctypes.c_long(number), *[ctypes.c_ulong(value) for value in values])
        if result < 0:
            found[name] = errno.errorcode.get(ctypes.get_errno(), "?")
            continue
        found[name] = "ok"
        if name == "userfaultfd":
            os.close(result)
    return found


def connect(family: str, address: str, port: int, word: str) -> str:
    """Open a connection, send a random word, and wait for its echo."""
    try:
        if family == "unix":
            peer = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            peer = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        with peer:
            peer.settimeout(CONNECT_TIMEOUT)
            peer.connect("\0" + address if family == "unix" else (address, port))
            peer.sendall(word.encode() + b"\n")
            return "connected" if peer.recv(64) else "closed"
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return reason(error)


def reach(targets: dict[str, list[Any]]) -> dict[str, str]:
    """Try all connections in parallel, as a dropped one takes its whole timeout."""
    found: dict[str, str] = {}

    def attempt(name: str, target: list[Any]) -> None:
        found[name] = connect(*target)

    threads = [threading.Thread(target=attempt, args=item) for item in targets.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def routes() -> dict[str, str]:
    """Find out whether there is a route out. Connecting a UDP socket consults the routing table and sends nothing.

    The addresses are reserved for documentation (RFC 5737, RFC 3849).
    """
    found = {}
    for name, family, address in (("IPv4", socket.AF_INET, "203.0.113.1"), ("IPv6", socket.AF_INET6, "2001:db8::1")):
        try:
            with socket.socket(family, socket.SOCK_DGRAM) as peer:
                peer.connect((address, 9))
                found[name] = f"from {peer.getsockname()[0]}"
        except OSError as error:
            found[name] = reason(error)
    return found


def look(asked: dict[str, Any]) -> None:
    """Make all observations and attempts that exceed no limit."""
    marker_pid = asked["marker_pid"]
    answer = machine() | processes(asked["marker_hash"], marker_pid)
    answer["files"] = files(asked["file"], marker_pid)
    answer["nodes"] = nodes()
    answer["disk"] = disk(**asked["disk"], marker_pid=marker_pid) if asked["disk"] else {}
    answer["reached"] = reach(asked["targets"])
    answer["routes"] = routes()
    answer["calls"] = calls()
    say(answer)


def sleep(asked: dict[str, Any]) -> None:
    """Sleep for a while, so that the host can find this process by a word in its arguments."""
    time.sleep(asked["seconds"])
    say({"uid": os.getuid(), "proof": digest(asked["salt"].encode() + sys.argv[-1].encode()), "status": status()})


def listen(asked: dict[str, Any]) -> None:
    """Echo each word that arrives until the end word or the time limit; then report the words."""
    heard: list[str] = []
    deadline = time.monotonic() + asked["seconds"]
    with socket.create_server((asked["address"], asked["port"])) as server:
        while asked["end"] not in heard and time.monotonic() < deadline and len(heard) < 64:
            server.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                peer, _ = server.accept()
                with peer:
                    peer.settimeout(CONNECT_TIMEOUT)
                    word = peer.recv(128)
                    heard.append(word.decode("ascii", "replace").strip())
                    peer.sendall(word)
            except OSError:
                continue
    say({"heard": heard})


MODES = {"look": look, "sleep": sleep, "listen": listen}

if __name__ == "__main__":
    MODES[sys.argv[1]](json.loads(sys.argv[2]))
