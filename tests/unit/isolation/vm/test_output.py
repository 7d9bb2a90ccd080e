"""Test the ports of the workload's output: the bytes that reach the log, and when a port is closed."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sandbox.errors import EngineError
from sandbox.isolation import keeper, log, supervision
from sandbox.isolation.keeper import STDERR, STDOUT
from sandbox.isolation.vm import output

NONCE = "00ff00ff00ff00ff"


class Machine:
    """QEMU's end of the two ports, and a process that stands for it."""

    def __init__(self, directory: Path) -> None:
        self.listeners = []
        for name in output.PORTS:
            listener = socket.socket(socket.AF_UNIX)
            listener.bind(str(directory / name))
            listener.listen(1)
            self.listeners.append(listener)
        self.process = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
        record: Any = SimpleNamespace(id="0123456789ab", directory=directory, owner=1)
        self.keeper = output.keep(record, NONCE, self.process.pid)
        self.ports = [listener.accept()[0] for listener in self.listeners]

    def end(self) -> None:
        for port in (*self.ports, *self.listeners):
            port.close()
        self.process.communicate()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.keeper.leave()
    made.end()
    supervision.wait_gone(tmp_path)


def test_the_guest_is_told_that_somebody_is_there(machine: Machine) -> None:
    assert [port.recv(64) for port in machine.ports] == [b"\n", b"\n"]


def test_a_port_is_closed_at_its_mark_and_not_before(machine: Machine, tmp_path: Path) -> None:
    out, err = machine.ports
    for port in machine.ports:
        port.recv(64)
    for piece in (b"\x00\xff\n", f"@{NONCE} en".encode(), b"ough\n", b"@", NONCE.encode(), b" end 4"):
        out.sendall(piece)
    err.sendall(b"error")
    out.settimeout(0.2)
    with pytest.raises(TimeoutError):
        out.recv(1)
    out.sendall(b"2\n")
    err.sendall(f"@{NONCE} end 42\n".encode())
    out.settimeout(10)
    # Closed by the other side: all of it was read.
    assert (out.recv(1), err.recv(1)) == (b"", b"")
    pieces = list(log.read(tmp_path, running=lambda: False))
    assert b"".join(piece.data for piece in pieces if piece.stream == STDOUT) == (
        b"\x00\xff\n" + f"@{NONCE} enough\n".encode()
    )
    assert b"".join(piece.data for piece in pieces if piece.stream == STDERR) == b"error"
    machine.end()
    assert machine.keeper.wait_exit_code(10) == 42
    assert json.loads((tmp_path / keeper.EXIT).read_text())["code"] == 42


PARTS = st.binary(max_size=9) | st.sampled_from([b"@", b"@n", b"@n end", b"n end ", b"@@n end", b"\n", b"1\n"])


@given(st.lists(PARTS, max_size=8), st.integers(1, 5))
def test_a_mark_is_found_however_it_comes_in_pieces(parts: list[bytes], size: int) -> None:
    mark = b"@n end "
    text = b"".join(parts)
    assume(mark not in text + mark[:-1])
    stream = text + mark + b"137\n"
    begun: list[Any] = [0, 0, b""]
    found = b""
    for at in range(0, len(stream), size):
        before, code = keeper._marked(begun, mark, stream[at : at + size])
        found += before
        assert (code is None) == (at + size < len(stream)), "at its end and not before"
    assert (found, code, begun[2]) == (text, b"137", b"")


def test_a_machine_that_is_switched_off_loses_nothing_that_it_sent(machine: Machine, tmp_path: Path) -> None:
    text = os.urandom(100_000) + f"@{NONCE} en".encode()
    machine.ports[0].sendall(text)
    machine.end()
    assert machine.keeper.wait_exit_code(10) is None
    assert b"".join(piece.data for piece in log.read(tmp_path, running=lambda: False)) == text


def test_a_machine_that_has_ended_is_one_line(tmp_path: Path) -> None:
    record: Any = SimpleNamespace(id="0123456789ab", directory=tmp_path, owner=1)
    with pytest.raises(EngineError, match="the machine's output cannot be read"):
        output.keep(record, NONCE, os.getpid())
