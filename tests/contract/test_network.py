"""What may talk to whom on the lab network, seen from inside each level and judged by a listener outside."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading

import pytest

from sandbox.isolation.base import Sandbox
from sandbox.kernel import syscalls
from sandbox.network import lab as network
from sandbox.spec import DEFAULT_PORT
from tests.verbs import Manager, Running

CONNECT = (
    "import socket,sys\ns=socket.socket();s.settimeout(1.5)\n"
    "try: s.connect((sys.argv[1],int(sys.argv[2])));s.sendall(sys.argv[3].encode());print('connected')\n"
    "except OSError as e: print('refused')"
)


def attempt(sandbox: Sandbox, address: str, port: int, word: str) -> bytes:
    argv = ["/usr/bin/python3", "-I", "-S", "-c", CONNECT, address, str(port), word]
    return sandbox.exec(argv, timeout=60).stdout.strip()


class Listener:
    """Listens on every address of the host, and keeps what it was sent."""

    def __init__(self) -> None:
        self.heard: list[bytes] = []
        self._socket = socket.create_server(("0.0.0.0", 0))
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                connection.settimeout(2)
                try:
                    self.heard.append(connection.recv(100))
                except OSError:
                    self.heard.append(b"")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


def test_the_host_cannot_be_reached(running: Running, level: str) -> None:
    listener = Listener()
    try:
        for address in (network.HOST_ADDRESS, "127.0.0.1"):
            attempt(running.sandbox, address, listener.port, f"{level} {address}")
    finally:
        listener.close()
    if level == "process":
        assert len(listener.heard) == 2, "the control has the host's network: it must get through"
    else:
        assert listener.heard == []


class Beyond:
    """Another network behind the host, with a listener on it: what a forwarded packet would reach."""

    NAME = "beyond-test"
    HOST, FAR = "198.19.255.1", "198.19.255.2"  # RFC 2544 too, outside the lab's half

    def __init__(self) -> None:
        self._ip("netns", "add", self.NAME)
        self._ip("link", "add", self.NAME, "type", "veth", "peer", "name", "eth0", "netns", self.NAME)
        self._ip("addr", "add", f"{self.HOST}/30", "dev", self.NAME)
        self._ip("link", "set", self.NAME, "up")
        self._ip("-n", self.NAME, "addr", "add", f"{self.FAR}/30", "dev", "eth0")
        self._ip("-n", self.NAME, "link", "set", "eth0", "up")
        self._ip("-n", self.NAME, "route", "add", "default", "via", self.HOST)
        descriptor = os.open(f"/run/netns/{self.NAME}", os.O_RDONLY)
        back = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            syscalls.setns(descriptor)
            self.listener = Listener()
        finally:
            syscalls.setns(back)
            os.close(descriptor)
            os.close(back)

    def _ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)

    def close(self) -> None:
        self.listener.close()
        self._ip("netns", "del", self.NAME)
        with contextlib.suppress(subprocess.CalledProcessError):  # it died with its peer
            self._ip("link", "del", self.NAME)


def test_there_is_no_way_beyond_the_host(running: Running, level: str) -> None:
    beyond = Beyond()
    try:
        with socket.create_connection((beyond.FAR, beyond.listener.port), 5):
            pass  # the control: the host itself gets there
        attempt(running.sandbox, beyond.FAR, beyond.listener.port, level)
    finally:
        beyond.close()
    heard = [word for word in beyond.listener.heard if word]
    assert heard == ([b"process"] if level == "process" else [])


def test_siblings_do_not_see_each_other(running: Running, level: str, manager: Manager) -> None:
    with manager.running(manager.make_spec("reactor", "namespace")) as sibling:
        answer = attempt(running.sandbox, sibling.record.address, DEFAULT_PORT, "GET / HTTP/1.0\r\n\r\n")
    assert answer == (b"connected" if level == "process" else b"refused")


def test_the_generator_reaches_it_and_nothing_else(running: Running) -> None:
    with network.generator_socket(2.0) as sock:
        sock.connect((running.record.address, DEFAULT_PORT))
    with network.generator_socket(1.0) as sock, pytest.raises(OSError, match="unreachable"):
        sock.connect(("192.0.2.77", 9))


def answer(address: str) -> str:
    """What the generator learns of an address within a moment: the name of an error, or "" where it got through."""
    sock = network.generator_socket(0.1)
    try:
        sock.connect((address, DEFAULT_PORT))
    except OSError as error:
        return type(error).__name__
    finally:
        sock.close()
    return ""


def test_nobody_answers_for_the_address_of_one_that_is_gone(level: str, manager: Manager) -> None:
    """A dead namespace would, until the kernel takes it apart; and so for the next sandbox, which has its address."""
    silence = {"TimeoutError", "OSError"}  # OSError: EHOSTUNREACH, once ARP has given up
    if level == "process":
        silence.add("ConnectionRefusedError")  # its address was the host's, and a host says that nobody listens
    with manager.lab():
        for _ in range(2 if level == "vm" else 5):
            with manager.running(manager.make_spec("reactor", level)) as running:
                address = running.record.address
                assert answer(address) == ""
            assert answer(address) in silence
