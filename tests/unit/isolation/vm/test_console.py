"""Test the console: only messages of the guest's init count, and the error says why a machine ended."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox.errors import EngineError, NotReadyError
from sandbox.isolation.vm import console as vm_console
from sandbox.isolation.vm.console import Console

NONCE = "00ff00ff00ff00ff"


@pytest.mark.parametrize(
    ("text", "word", "number"),
    [
        (f"[    1.200000] @{NONCE} boot\r\n", "boot", 0),
        (f"SeaBIOS\r\n[   12.345678] @{NONCE} exit 137\r\nmore", "exit", 137),
        (f"[    1.2] @{NONCE} boot\n", "start", None),
        (f"[    1.2] @{NONCE} boo", "boot", None),
        ("[    1.2] @0000000000000000 exit 0\r\n", "exit", None),
        (f"[    1.2] Killed process 7 (@{NONCE} exit 0)\r\n", "exit", None),
        (f"@{NONCE} exit 0\r\n", "exit", None),
        (f"[    1.2] @{NONCE} exit 0 \r\n", "exit", None),
        ("", "boot", None),
    ],
)
def test_just_the_inits_words_count(text: str, word: str, number: int | None) -> None:
    assert vm_console.find_word(text.encode(), NONCE, word) == number


def test_rotated_logs_are_in_order(tmp_path: Path) -> None:
    for name in ("log", "log.0", "log.2", "log.1", "log.10", "log.txt", "logs"):
        (tmp_path / name).touch()
    assert [path.name for path in vm_console.rotated(tmp_path / "log")] == ["log.10", "log.2", "log.1", "log.0", "log"]


def test_the_exit_code_survives_a_rotation(tmp_path: Path) -> None:
    log = tmp_path / "console.log"
    assert vm_console.exit_code(log, NONCE) is None
    (tmp_path / "console.log.0").write_text("x" * 100_000 + f"\n[    9.1] @{NONCE} ex")
    log.write_text("it 3\r\n[    9.2] reboot: Restarting system\r\n")
    assert vm_console.exit_code(log, NONCE) == 3


def test_the_last_message_names_the_cause() -> None:
    panic = b"[ 1.0] Kernel panic - not syncing: no init\r\n[ 1.1] CPU: 0\r\n[ 1.2] Kernel Offset: disabled\r\n"
    assert vm_console.last_message(panic) == "[ 1.0] Kernel panic - not syncing: no init"
    assert vm_console.last_message(b"one\r\n\x1b[31mtwo\r\n\r\n") == "?[31mtwo"
    assert vm_console.last_message(b"\r\n") is None


class Machine:
    """The far end of a serial port."""

    def __init__(self, path: Path) -> None:
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.port: socket.socket | None = None

    def accept(self) -> socket.socket:
        self.port, _ = self.listener.accept()
        return self.port

    def close(self) -> None:
        self.listener.close()
        if self.port is not None:
            self.port.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path / "console")
    yield made
    made.close()


def test_a_word_in_pieces_is_heard(machine: Machine, tmp_path: Path) -> None:
    with Console(tmp_path / "console", NONCE) as console:
        port = machine.accept()

        def speak() -> None:
            for piece in (b"[    0.1] noise\r\n[ ", b"   0.2] @", NONCE.encode(), b" boot", b"\r\n"):
                port.sendall(piece)
                time.sleep(0.01)

        thread = threading.Thread(target=speak)
        thread.start()
        assert console.wait(("boot",), time.monotonic() + 5, lambda: True) == "boot"
        thread.join()
        console.send("start")
        assert port.recv(64) == b"start\n"


def test_a_machine_that_ends_says_why(machine: Machine, tmp_path: Path) -> None:
    with Console(tmp_path / "console", NONCE) as console:
        port = machine.accept()
        port.sendall(b"[    1.0] sandbox: there is no network interface\r\n")
        port.close()
        with pytest.raises(EngineError) as caught:
            console.wait(("boot",), time.monotonic() + 5, lambda: True)
    assert "ended before it reported 'boot'" in caught.value.message
    assert "no network interface" in (caught.value.hint or "")


def test_a_dead_process_is_noticed(machine: Machine, tmp_path: Path) -> None:
    with Console(tmp_path / "console", NONCE) as console:
        machine.accept()
        with pytest.raises(EngineError):
            console.wait(("boot",), time.monotonic() + 30, lambda: False)


def test_the_deadline_holds(machine: Machine, tmp_path: Path) -> None:
    with Console(tmp_path / "console", NONCE) as console:
        machine.accept()
        begin = time.monotonic()
        with pytest.raises(NotReadyError):
            console.wait(("boot",), begin + 0.05, lambda: True)
        assert time.monotonic() - begin < 5


def test_no_console_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="cannot be reached"):
        Console(tmp_path / "nothing", NONCE)
