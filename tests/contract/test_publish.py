"""Ports of 127.0.0.1 that lead into a sandbox, at every level, with a real server behind them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from sandbox.errors import BusyError, SandboxError
from sandbox.kernel import nftables
from sandbox.lifecycle import lab as lab_life
from sandbox.network import lab as network
from sandbox.network import publish as publishing
from sandbox.spec import DEFAULT_PORT, Publish
from sandbox.state.record import Record
from sandbox.state.store import named_lock
from tests import leaks
from tests.verbs import Manager, Running

ROOT = Path(__file__).resolve().parents[2]
ROUTE_LOCALNET = Path(f"/proc/sys/net/ipv4/conf/{network.BRIDGE}/route_localnet")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def ask(port: int, address: str = "127.0.0.1", timeout: float = 10.0) -> bytes:
    with closing(http.client.HTTPConnection(address, port, timeout=timeout)) as connection:
        connection.request("GET", "/")
        return connection.getresponse().read().strip()


def table() -> str:
    done = subprocess.run(
        ["nft", "list", "table", "inet", publishing.TABLE], capture_output=True, text=True, check=False
    )
    return done.stdout


@pytest.fixture(scope="module")
def published(level: str, manager: Manager, nothing_left_of_the_shared_one: None) -> Iterator[Running]:
    """A reactor at the level, serving on a port of the host."""
    spec = manager.make_spec("reactor", level, memory="128m", publish=[f"{free_port()}:{DEFAULT_PORT}"])
    with manager.running(spec) as found:
        yield found


def host_port(running: Running) -> int:
    return running.record.spec.publish[0].host


def test_the_port_leads_inside(published: Running) -> None:
    assert ask(host_port(published)) == b"hello"
    for _ in range(20):
        assert ask(host_port(published)) == b"hello"
    assert publishing.published_ports(published.record.id) == list(published.record.spec.publish)
    assert f"sbx-{published.record.id}" in table()


def test_on_the_loopback_address_alone(published: Running) -> None:
    for address in (network.HOST_ADDRESS, "127.0.0.2"):
        with pytest.raises(OSError, match=r"refused|timed out"):
            ask(host_port(published), address, timeout=2)


def test_the_port_is_taken(published: Running, manager: Manager, level: str) -> None:
    spec = manager.make_spec("reactor", level, publish=[f"{host_port(published)}:80"])
    with pytest.raises(BusyError, match=published.record.name):
        manager.run(spec)
    assert ask(host_port(published)) == b"hello", "the refusal took the port away from its owner"


CONNECT = (
    "import socket,sys\ns=socket.socket();s.settimeout(1.5)\n"
    "try:\n s.connect((sys.argv[1],int(sys.argv[2])));s.sendall(b'here');print('connected')\n"
    "except OSError as e: print('no')"
)


def test_the_sandbox_does_not_reach_the_host_by_it(published: Running, level: str) -> None:
    """What makes publishing work lets packets for 127.0.0.1 in from the bridge; the rules must not."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = int(listener.getsockname()[1])

        def listen() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        heard.append(connection.recv(10))

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        for address in ("127.0.0.1", network.HOST_ADDRESS):
            argv = ["/usr/bin/python3", "-I", "-S", "-c", CONNECT, address, str(port)]
            published.sandbox.exec(argv, timeout=60)
        assert (heard != []) == (level == "process"), "the control shares the host's network"
        with socket.create_connection(("127.0.0.1", port), 5) as control:
            control.sendall(b"control")
        time.sleep(0.2)
        assert b"contr" in b"".join(heard), "the listener must have been there to hear"
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.level("namespace")
def test_forged_packets_are_dropped_where_the_setting_would_let_them_in(manager: Manager) -> None:
    """A frame with 127.0.0.1 in it, straight onto the bridge: counted at the rule, and never at the listener.

    The control takes the rules away for a moment: the same frame then arrives.
    """
    spec = manager.make_spec("reactor", "namespace", publish=[f"{free_port()}:{DEFAULT_PORT}"])
    with manager.running(spec), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.settimeout(1.0)
        port = int(listener.getsockname()[1])
        assert ROUTE_LOCALNET.read_text(encoding="ascii").strip() == "1"
        send_from_bridge(port)
        with pytest.raises(TimeoutError):
            listener.recv(100)
        with taken_away(publishing.TABLE, "forged"), taken_away(network.TABLE, "input"):
            send_from_bridge(port)
            assert listener.recv(100) == b"forged"


def send_from_bridge(port: int) -> None:
    """A UDP datagram for 127.0.0.1 from the generator's link, with the bridge's hardware address as its target."""
    mac = bytes.fromhex(Path(f"/sys/class/net/{network.BRIDGE}/address").read_text(encoding="ascii").replace(":", ""))
    payload = b"forged"
    udp = port.to_bytes(2, "big") * 2 + (8 + len(payload)).to_bytes(2, "big") + b"\0\0" + payload
    source, target = socket.inet_aton("198.18.0.9"), socket.inet_aton("127.0.0.1")
    head = b"\x45\0" + (20 + len(udp)).to_bytes(2, "big") + b"\0\0\0\0\x40\x11\0\0" + source + target
    total = sum(int.from_bytes(head[index : index + 2], "big") for index in range(0, 20, 2))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    head = head[:10] + checksum.to_bytes(2, "big") + head[12:]
    with network.in_generator():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        raw.bind(("eth0", 0))
    with raw:
        own = bytes.fromhex(network.GENERATOR_MAC.replace(":", ""))
        raw.send(mac + own + b"\x08\x00" + head + udp)


class taken_away:  # noqa: N801 - reads as a statement
    """A chain without its rules for the time of a block, put back as it was."""

    def __init__(self, table: str, chain: str) -> None:
        self._name = f"inet {table} {chain}"

    def __enter__(self) -> None:
        listed = subprocess.run(
            ["nft", "list", "chain", *self._name.split()], capture_output=True, text=True, check=True
        ).stdout
        self._rules = [line.strip() for line in listed.splitlines()[3:] if line.strip() not in ("", "}")]
        nftables.load(f"flush chain {self._name}\n")

    def __exit__(self, *exc: object) -> None:
        nftables.load("".join(f"add rule {self._name} {rule}\n" for rule in self._rules))


@pytest.mark.level("namespace")
class TestTheWayOut:
    """How a port gets free again; one level is enough, for the drivers know nothing of it."""

    def test_stop_withdraws_it_and_the_next_may_have_it(self, manager: Manager) -> None:
        port = free_port()
        spec = manager.make_spec("reactor", "namespace", publish=[f"{port}:{DEFAULT_PORT}"])
        running = manager.run(spec)
        try:
            assert ask(port) == b"hello"
            manager.stop(running.record.name, 10.0)
            with pytest.raises(ConnectionRefusedError):
                ask(port)
            assert running.record.id not in table()
        finally:
            manager.remove(running.record.name, force=True)
        with manager.running(manager.make_spec("reactor", "namespace", publish=[f"{port}:{DEFAULT_PORT}"])):
            assert ask(port) == b"hello"

    def test_several_ports_and_several_sandboxes(self, manager: Manager) -> None:
        first, second, third = free_port(), free_port(), free_port()
        one = manager.make_spec("reactor", "namespace", publish=[f"{first}:{DEFAULT_PORT}", f"{second}:{DEFAULT_PORT}"])
        other = manager.make_spec("reactor", "namespace", publish=[f"{third}:{DEFAULT_PORT}"])
        with manager.running(other):
            with manager.running(one):
                assert {ask(port) for port in (first, second, third)} == {b"hello"}
            with pytest.raises(ConnectionRefusedError):
                ask(first)
            assert ask(third) == b"hello"
            assert ROUTE_LOCALNET.read_text(encoding="ascii").strip() == "1"

    def test_a_port_that_somebody_listens_on_is_refused(self, manager: Manager) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = int(listener.getsockname()[1])
            with pytest.raises(BusyError, match="in use"):
                manager.run(manager.make_spec("reactor", "namespace", publish=[f"{port}:80"]))
        with socket.create_server(("0.0.0.0", 0)) as listener:
            port = int(listener.getsockname()[1])
            with pytest.raises(BusyError, match="in use"):
                manager.run(manager.make_spec("reactor", "namespace", publish=[f"{port}:80"]))
        assert manager.store.port_owner(port) == "", "the claim of the refused one stayed"

    def test_two_at_once_with_one_port_make_one(self) -> None:
        port = free_port()
        command = [sys.executable, "-m", "sandbox", "run", "reactor", "-d", "-p", f"{port}:{DEFAULT_PORT}", "--name"]
        names = [f"pub-race-{number}" for number in range(3)]
        racers = [
            subprocess.Popen([*command, name], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
            for name in names
        ]
        try:
            outcomes = []
            for racer in racers:
                racer.communicate(timeout=120)
                outcomes.append(racer.returncode)
            assert sorted(outcomes) == [0, 125, 125]
            assert ask(port) == b"hello"
        finally:
            subprocess.run([sys.executable, "-m", "sandbox", "rm", "-f", *names], cwd=ROOT, check=False)

    def test_a_killed_command_leaves_nothing_that_prune_does_not_find(self, manager: Manager) -> None:
        port = free_port()
        command = [sys.executable, "-m", "sandbox", "run", "reactor", "-p", f"{port}:{DEFAULT_PORT}"]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as shell:
            assert shell.stdout is not None
            assert shell.stdout.readline().startswith("http://")
            assert ask(port) == b"hello"
            os.kill(shell.pid, signal.SIGKILL)
        owner = manager.store.port_owner(port)
        assert owner in table()
        manager.prune()
        assert owner not in table()
        assert manager.store.port_owner(port) == ""

    def test_a_stray_one_is_counted_and_swept(self, manager: Manager) -> None:
        """The store knows nothing of it: what the kernel has must be enough."""
        ident, port = "0123456789ab", free_port()
        with manager.lab():
            before = leaks.published()
            with named_lock(lab_life.LOCK):
                publishing.publish(ident, "198.18.2.9", [Publish(port, 80)])
            assert any(ident in line for line in leaks.published() - before)
            with named_lock(lab_life.LOCK):
                found = publishing.prune(manager.store.known(), dry_run=True)
                assert f"published port 127.0.0.1:{port}" in found
                assert f"published port 127.0.0.1:{port}" in publishing.prune(manager.store.known(), dry_run=False)
            assert leaks.published() <= before

    def test_nothing_is_published_by_a_run_that_failed(self, manager: Manager) -> None:
        port = free_port()
        spec = manager.make_spec(["/usr/bin/false"], "namespace", port=80, publish=[f"{port}:80"])
        with pytest.raises(SandboxError):
            manager.run(spec)
        assert f" {port} " not in table()
        assert manager.store.port_owner(port) == ""


def test_a_record_keeps_what_is_published(published: Running) -> None:
    kept = json.dumps(published.record.to_json())
    assert Record.from_json(json.loads(kept)).spec.publish == published.record.spec.publish
