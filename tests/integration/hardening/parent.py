"""A careless parent: makes sandboxes from as dirty a place as there can be, and says what attempts inside came to.

It has a controlling terminal, inheritable descriptors to the host's root, a secret in its environment, a key in its
session keyring, a System V segment, an abstract socket, and mounts that are shared. All of that is its own: it lives in
mount and IPC namespaces that end with it. It reads requests from standard input, one line of JSON each, and answers
on standard output. Started by the tests: `python -m tests.integration.hardening.parent FOLDER WORD`.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import pty
import socket
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sandbox.errors import SandboxError
from sandbox.kernel import syscalls
from sandbox.spec import MIB, SandboxSpec
from tests.integration.hardening import probes, switches
from tests.integration.hardening.cases import CASES, Case
from tests.verbs import Manager, Running
from tools.seccomp import compiler

PYTHON = ("/usr/bin/python3", "-I", "-S", "-c")
MEMORY, PIDS, DISK = 64 * MIB, 32, 8 * MIB
LEAKED = (37, 200)
"""Numbers of inheritable descriptors, below and above those that are moved about at a start."""
_SECONDS = 120.0


def be_careless(folder: str, word: str) -> probes.World:
    """Become what a sandbox's parent had better not be, and return what there is to find."""
    syscalls.unshare(syscalls.CLONE_NEWNS | syscalls.CLONE_NEWIPC)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_SHARED)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 9)
    _, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    for number in LEAKED:
        root = os.open("/", os.O_RDONLY | os.O_DIRECTORY)
        os.dup2(root, number, inheritable=True)
        os.close(root)
    os.environ["HARDENING_SECRET"] = word
    os.environ["HARDENING_FOLDER"] = folder
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(f"\0hardening-{word}")
    listener.listen(64)
    listener.set_inheritable(True)
    listener.detach()
    _hold_key(f"hardening-{word}")
    return {
        "file": f"{folder}/secret",
        "secret": Path(f"{folder}/secret").read_text(encoding="utf-8"),
        "word": word,
        "pid": os.getpid(),
        "socket": f"hardening-{word}",
        "key": f"hardening-{word}",
        "ipc": _share_memory(),
    }


def _hold_key(name: str) -> None:
    """A session keyring of our own, with a key in it (add_key(2), keyctl(2))."""
    table = compiler.MACHINES[os.uname().machine][1]
    syscalls.new_session_keyring()
    session = ctypes.c_int(-3)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(ctypes.c_long(table["add_key"]), b"user", name.encode(), b"x", ctypes.c_size_t(1), session) < 0:
        raise OSError(ctypes.get_errno(), "add_key")


def _share_memory() -> int:
    """A System V segment that everybody may read; it ends with our IPC namespace."""
    key, create = 0x5B5B0001, 0o1000
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.shmget(ctypes.c_int(key), ctypes.c_size_t(4096), ctypes.c_int(create | 0o666)) < 0:
        raise OSError(ctypes.get_errno(), "shmget")
    return key


def program(world: probes.World, cases: list[Case], *, linger: bool = False) -> list[str]:
    """The command that makes the attempts."""
    asked = {"world": world, "cases": {case.name: case.probe for case in cases}, "linger": linger}
    return [*PYTHON, Path(probes.__file__).read_text(encoding="utf-8"), json.dumps(asked)]


def answers(output: bytes) -> dict[str, Any]:
    """What each attempt came to; the end is marked by None."""
    found: dict[str, Any] = {}
    for line in output.decode("utf-8", "replace").splitlines():
        if line.startswith(probes.TAG):
            said = json.loads(line[len(probes.TAG) :])
            found[str(said["case"])] = said.get("answer")
    return found


def outside(world: probes.World, cases: list[Case], before: tuple[str, ...]) -> dict[str, Any]:
    """The same attempts by a child of ours behind no wall."""
    done = subprocess.run(
        [*before, *program(world, cases)], capture_output=True, close_fds=False, timeout=_SECONDS, check=False
    )
    return answers(done.stdout) or {"failed": done.stderr.decode("utf-8", "replace")[-500:]}


@contextmanager
def another_thread() -> Iterator[None]:
    """Be a process of two threads, whose sandboxes are made in another way; see `enter.spawn_namespaced`."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


@contextmanager
def sandbox(manager: Manager, argv: list[str]) -> Iterator[Running]:
    """One at the level, with a command of ours as its workload."""
    made = manager.make_spec("reactor", "namespace")
    spec: SandboxSpec = replace(
        made, argv=tuple(argv), port=None, memory=MEMORY, pids_limit=PIDS, disk=DISK, name=f"hard-{made.name}"[:63]
    )
    with manager.running(spec) as running:
        yield running


def inside(manager: Manager, world: probes.World, cases: list[Case], ways: list[str]) -> dict[str, dict[str, Any]]:
    """The attempts by the workload itself, and by commands beside it."""
    found: dict[str, dict[str, Any]] = {}
    with sandbox(manager, program(world, cases, linger=True)) as running:
        deadline = time.monotonic() + _SECONDS
        while True:
            found["workload"] = answers(b"".join(running.sandbox.logs()))
            if "None" in found["workload"] or time.monotonic() > deadline or not running.sandbox.state().running:
                break
            time.sleep(0.01)
        for way in ways:
            if way in ("exec", "root"):
                done = running.sandbox.exec(program(world, cases), timeout=_SECONDS, root=way == "root")
                found[way] = answers(done.stdout) or {"failed": done.stderr.decode("utf-8", "replace")[-500:]}
    return found


def serve(world: probes.World) -> None:
    """Answer requests until there are no more."""
    manager = Manager()
    for line in sys.stdin:
        asked = json.loads(line)
        cases = [CASES[name] for name in asked["cases"]]
        answer: dict[str, Any]
        with pytest.MonkeyPatch.context() as patch:
            try:
                if asked["where"] == "outside":
                    answer = outside(world, cases, tuple(asked["before"]))
                else:
                    thrown = [getattr(CASES[name], field) for name, field in asked["switches"]]
                    switches.apply(patch, thrown)
                    with another_thread() if asked["where"] == "threads" else nullcontext():
                        answer = inside(manager, world, cases, asked["ways"])
            except SandboxError as error:
                answer = {"refused": f"{error.message} ({error.hint})"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve(be_careless(*sys.argv[1:3]))
