"""Dropping capabilities in a child, verified by /proc, by a set-user-ID program and by an attempt to use one."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from sandbox.kernel import caps

ROOT = Path(__file__).resolve().parents[3]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only root has capabilities to give up")

CHILD = r"""
import errno, json, os, sys
sys.path.insert(0, sys.argv[1])
from sandbox.kernel import caps

def attempt():
    # CAP_SYS_CHROOT is the easiest to try: chroot to the current root.
    pid = os.fork()
    if pid == 0:
        try:
            os.chroot("/")
            os._exit(0)
        except OSError as error:
            os._exit(error.errno)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

out = {"before": caps.status(), "chroot before": attempt()}
how = sys.argv[2]
if how == "all":
    caps.drop_bounding()
    caps.clear()
elif how == "around a change of user":
    caps.drop_bounding()
    os.setgroups([])
    os.setresgid(10001, 10001, 10001)
    os.setresuid(10001, 10001, 10001)
    out["between"] = caps.status()
    caps.clear()
caps.set_no_new_privs()
out |= {"after": caps.status(), "chroot after": attempt()}
try:
    if how != "nothing given up":
        caps.drop_bounding()
    out["again"] = 0
except OSError as error:
    out["again"] = error.errno
# Without the securebits, a program executed by user id 0 would get all capabilities back.
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    os.dup2(write, 1)
    os.execv("/bin/cat", ["cat", "/proc/self/status"])
os.close(write)
out["exec"] = caps.parse(os.fdopen(read).read())
os.waitpid(pid, 0)
print(json.dumps(out))
"""


def run(how: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-I", "-c", CHILD, str(ROOT), how], capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 0, done.stderr
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@needs_root
@pytest.mark.parametrize("how", ["all", "around a change of user"])
def test_nothing_is_left_and_nothing_comes_back(how: str) -> None:
    seen = run(how)
    assert seen["before"]["CapEff"] != 0
    assert seen["before"]["CapBnd"] != 0
    assert seen["chroot before"] == 0
    for moment in ("after", "exec"):
        assert [seen[moment][name] for name in caps.SETS] == [0, 0, 0, 0, 0]
        assert seen[moment]["NoNewPrivs"] == 1
    assert seen["chroot after"] == errno.EPERM
    assert seen["again"] == errno.EPERM


@needs_root
def test_the_control_keeps_them() -> None:
    seen = run("nothing given up")
    assert seen["after"]["CapEff"] == seen["before"]["CapEff"] != 0
    assert seen["chroot after"] == 0
    assert seen["exec"]["CapEff"] != 0


@needs_root
def test_between_the_two_halves_the_permitted_set_lives() -> None:
    seen = run("around a change of user")
    assert seen["between"]["CapPrm"] != 0
    assert seen["between"]["CapBnd"] == 0


def test_status_of_this_process_and_of_none() -> None:
    seen = caps.status()
    assert set(caps.SETS) <= seen.keys()
    assert seen == caps.status(os.getpid())
    with pytest.raises(OSError, match="No such"):
        caps.status(2**22 + 1)


def test_parse_reads_hex_and_decimal_and_skips_what_it_does_not_know() -> None:
    text = "Name:\tCapEff: x\nCapEff:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2\nFuture:\tzz\n"
    assert caps.parse(text) == {"CapEff": 0xA80425FB, "NoNewPrivs": 1, "Seccomp": 2}
    assert caps.parse("") == {}
