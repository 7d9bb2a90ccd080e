"""Test that signals which the init does not forward are sent to its child."""

from __future__ import annotations

import os
import signal
import subprocess

import pytest

from sandbox.isolation.local import signals

# Its child sleeps; it prints the signal that killed the child, or that it received itself.
INIT = (
    "import os,signal,sys\n"
    "pid=os.fork()\n"
    "if pid==0: os.execvp('sleep',['sleep','60'])\n"
    "signal.signal(signal.SIGUSR1,lambda *_: (print('own',flush=True),os.kill(pid,9)))\n"
    "print('up',flush=True)\n"
    "while True:\n"
    " try: _,status=os.waitpid(pid,0);break\n"
    " except InterruptedError: pass\n"
    "print(os.WTERMSIG(status))"
)


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGABRT, "6\n"), (signal.SIGSEGV, "11\n"), (signal.SIGUSR1, "own\n9\n")],
)
def test_by_whom_it_is_taken(number: int, said: str) -> None:
    with subprocess.Popen(["/usr/bin/python3", "-c", INIT], stdout=subprocess.PIPE, text=True) as init:
        assert init.stdout is not None
        assert init.stdout.readline() == "up\n"
        signals.send(init.pid, number)
        assert init.communicate(timeout=10)[0] == said


def test_an_init_without_a_child_is_gone() -> None:
    with subprocess.Popen(["sleep", "60"]) as init:
        with pytest.raises(ProcessLookupError):
            signals.send(init.pid, signal.SIGABRT)
        init.kill()


def test_no_such_signal_and_no_such_process() -> None:
    with pytest.raises(ValueError, match="99"):
        signals.send(os.getpid(), 99)
    with subprocess.Popen(["true"]) as gone:
        gone.wait()
    with pytest.raises(ProcessLookupError):
        signals.send(gone.pid, signal.SIGTERM)
