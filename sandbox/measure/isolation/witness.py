"""The witness: set up targets on the host that a sandbox may try to reach, and see whether it did.

The targets are a marker process with a random word in its arguments, a file with random text, a block device, and
listeners that log what they receive. The witness also reads the sandbox's processes in the host's /proc. See proc(5),
namespaces(7), capabilities(7).
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sandbox.kernel import caps, nftables, procfs
from sandbox.measure.isolation import blockdevice
from sandbox.measure.isolation.observed import Host, Resident, Secrets, clean
from sandbox.network import lab
from sandbox.spec import SANDBOX_UID
from sandbox.state.processid import boot_id

NAMESPACES = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
_ACCEPT_TIMEOUT = 1.0
_MAX_WORD = 128

# Writes a byte for each SIGURG, which only the sandbox sends. Ends with its parent.
_MARKER = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, 9)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGURG})
os.write(1, b"r")
while os.getppid() == int(sys.argv[1]):
    if signal.sigtimedwait({signal.SIGURG}, 1.0):
        os.write(1, b"s")
"""


@dataclass(slots=True)
class Listener:
    """A listening socket of the host, and the words that it received."""

    name: str
    family: str
    address: str
    port: int
    sock: socket.socket
    heard: list[str]

    def target(self, word: str) -> list[Any]:
        """Return the probe's instructions: where to connect, and the word to send."""
        return [self.family, self.address, self.port, word]


class Witness:
    """The targets of the host. As a context manager, it creates and removes them."""

    def __init__(self) -> None:
        self.marker = "sbx-marker-" + secrets.token_hex(16)
        self.token = "sbx-token-" + secrets.token_hex(16)
        self.listeners: list[Listener] = []
        self.notes: dict[str, str] = {}
        self._stack = ExitStack()
        self._process: subprocess.Popen[bytes] | None = None
        self._file = Path()
        self._disk: blockdevice.BlockDevice | None = None

    def __enter__(self) -> Witness:
        with ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="sbx-witness-"))
            # Readable for all, as the isolation is tested and not the file's permissions.
            os.chmod(folder, 0o755)  # noqa: S103
            self._file = Path(folder) / "token"
            self._file.write_text(self.token, encoding="ascii")
            self._file.chmod(0o644)
            self._process = stack.enter_context(self._start_marker())
            stack.callback(self._process.kill)
            assert self._process.stdout is not None  # noqa: S101 - asked for with PIPE
            os.read(self._process.stdout.fileno(), 1)
            os.set_blocking(self._process.stdout.fileno(), False)
            try:
                self._disk = blockdevice.make()
                stack.callback(self._disk.close)
            except OSError as error:
                self.notes["disk"] = f"no loop device: {error.strerror}"
            self._listen(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _start_marker(self) -> subprocess.Popen[bytes]:
        # As the same user as the workload: the isolation of processes is tested, not that of users.
        user = SANDBOX_UID if os.geteuid() == 0 else None
        return subprocess.Popen(
            [_interpreter(), "-I", "-S", "-c", _MARKER, str(os.getpid()), self.marker],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd="/",
            user=user,
            group=user,
            extra_groups=None if user is None else [],
        )

    def _listen(self, stack: ExitStack) -> None:
        places = [("bridge address", "inet", lab.HOST_ADDRESS), ("loopback", "inet", "127.0.0.1")]
        other = _other_address()
        if other:
            places.append(("other address", "inet", other))
        places.append(("abstract socket", "unix", "sbx-witness-" + secrets.token_hex(8)))
        stop = threading.Event()
        threads: list[threading.Thread] = []
        for name, family, address in places:
            try:
                listener = _bind(name, family, address)
            except OSError as error:
                self.notes[name] = f"not tried: {error.strerror}"
                continue
            stack.callback(listener.sock.close)
            thread = threading.Thread(target=_serve, args=(listener, stop), daemon=True)
            thread.start()
            threads.append(thread)
            self.listeners.append(listener)
        for thread in threads:
            stack.callback(thread.join)
        stack.callback(stop.set)

    def check_listeners(self) -> frozenset[str]:
        """Connect to each listener from the host, as a control. Returns the names of those that received the word."""
        working = set()
        for listener in self.listeners:
            word = "control-" + secrets.token_hex(8)
            with suppress(OSError):
                _say(listener, word)
            if word in listener.heard:
                working.add(listener.name)
        return frozenset(working)

    def errand(self, sibling: list[Any] | None) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the instructions of a probe, and the word that it will send to each listener."""
        words = {listener.name: "probe-" + secrets.token_hex(8) for listener in self.listeners}
        targets = {listener.name: listener.target(words[listener.name]) for listener in self.listeners}
        if sibling is not None:
            targets["sibling"] = sibling
        disk = None
        if self._disk is not None:
            disk = {"name": self._disk.path.name, "major": self._disk.major, "minor": self._disk.minor}
        assert self._process is not None  # noqa: S101 - set on entering
        asked = {
            "marker_hash": hashlib.sha256(self.marker.encode()).hexdigest(),
            "marker_pid": self._process.pid,
            "file": str(self._file),
            "disk": disk,
            "targets": targets,
        }
        return asked, words

    @property
    def disk_name(self) -> str | None:
        """The block device of the host that the probe tries to read, such as /dev/loop3."""
        return str(self._disk.path) if self._disk else None

    def _signals(self) -> int:
        """Return the number of signals that reached the marker process since the last call."""
        assert self._process is not None  # noqa: S101 - set on entering
        assert self._process.stdout is not None  # noqa: S101 - asked for with PIPE
        try:
            return len(os.read(self._process.stdout.fileno(), 4096))
        except BlockingIOError:
            return 0

    def secrets(self, words: dict[str, str], control: frozenset[str]) -> Secrets:
        """Return the secrets and what the witness noticed, for the verdicts."""
        heard = frozenset(one.name for one in self.listeners if words.get(one.name) in one.heard)
        digest = self._disk.digest if self._disk else None
        return Secrets(self.marker, self.token, digest, self._signals(), control, heard)


def host_facts(disk: str | None) -> Host:
    """Return the host's own values."""
    return Host(
        boot_id=boot_id(),
        release=os.uname().release,
        cpus=os.cpu_count() or 1,
        memory=procfs.kibibytes(Path("/proc/meminfo").read_text(encoding="ascii"), "MemTotal") or 0,
        namespaces=namespaces("self"),
        capabilities=caps.status("self").get("CapBnd", 0),
        disk=disk,
    )


def namespaces(pid: int | str) -> dict[str, str]:
    """Return the links of a process's namespaces by name; empty if it is gone."""
    found = {}
    for name in NAMESPACES:
        with suppress(OSError):
            found[name] = os.readlink(f"/proc/{pid}/ns/{name}")
    return found


def resident(pid: int) -> Resident | None:
    """Describe a process as the host's kernel shows it; None if it is gone."""
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    said = procfs.fields(text)
    if "Uid" not in said:
        return None
    uids = tuple(map(int, said["Uid"].split()))
    return Resident(pid, _title(pid, said.get("Name", "?")), uids, caps.parse(text), namespaces(pid))


def _title(pid: int, title: str) -> str:
    """Return the name of a process: its zeroth argument, else the kernel's name for it (runsc's is "exe")."""
    with suppress(OSError):
        zeroth = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
        title = os.path.basename(zeroth.decode("utf-8", "replace")) or title
    return clean(title, 24)


def find_by_word(word: str) -> int | None:
    """Find the process of the host that has a word as its last argument."""
    wanted = b"\0" + word.encode() + b"\0"
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with suppress(OSError):
            if Path(f"/proc/{entry}/cmdline").read_bytes().endswith(wanted):
                return int(entry)
    return None


def family(pid: int) -> list[int]:
    """Return a process and its descendants, by the parents in /proc/<pid>/stat."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                parent = procfs.stat(Path(f"/proc/{entry}/stat").read_bytes()).parent
                children.setdefault(parent, []).append(int(entry))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def has_default_route(pid: int) -> bool | None:
    """Return whether a process's network namespace has a default route (proc_pid_net(5)); None if it is gone."""
    try:
        table = Path(f"/proc/{pid}/net/route").read_text(encoding="ascii")
    except OSError:
        return None
    return any(route.startswith("default ") for route in procfs.routes(table))


def forwarding_barred() -> bool:
    """Return whether the nftables table that drops packets forwarded from the bridge is loaded."""
    try:
        return nftables.table_exists("inet", lab.TABLE)
    except OSError:
        return False


def _interpreter() -> str:
    return "/usr/bin/python3" if os.access("/usr/bin/python3", os.X_OK) else sys.executable


def _other_address() -> str | None:
    """Return an address of the host on another link than the lab's. Connecting a UDP socket sends nothing."""
    for probe in ("203.0.113.1", "10.255.255.255", "192.168.255.255"):
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
            peer.connect((probe, 9))
            address = str(peer.getsockname()[0])
            if address != lab.HOST_ADDRESS and not address.startswith("127."):
                return address
    return None


def _bind(name: str, kind: str, address: str) -> Listener:
    sock = socket.socket(socket.AF_UNIX if kind == "unix" else socket.AF_INET, socket.SOCK_STREAM)
    try:
        sock.bind("\0" + address if kind == "unix" else (address, 0))
        sock.listen(16)
    except OSError:
        sock.close()
        raise
    port = 0 if kind == "unix" else int(sock.getsockname()[1])
    return Listener(name, kind, address, port, sock, [])


def _serve(listener: Listener, stop: threading.Event) -> None:
    listener.sock.settimeout(0.1)
    while not stop.is_set():
        try:
            peer, _ = listener.sock.accept()
        except OSError:
            continue
        with peer, suppress(OSError):
            peer.settimeout(_ACCEPT_TIMEOUT)
            word = peer.recv(_MAX_WORD)
            listener.heard.append(word.decode("ascii", "replace").strip())
            peer.sendall(word)


def _say(listener: Listener, word: str) -> None:
    with socket.socket(listener.sock.family, socket.SOCK_STREAM) as peer:
        peer.settimeout(_ACCEPT_TIMEOUT)
        peer.connect("\0" + listener.address if listener.family == "unix" else (listener.address, listener.port))
        peer.sendall(word.encode() + b"\n")
        peer.recv(_MAX_WORD)
