"""The house rules, as `make check` holds them: a person, CI and the tests run the same commands."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKS = ("format", "lint", "types", "imports", "spelling", "shell")


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_check(check: str) -> None:
    if check == "shell" and shutil.which("shellcheck") is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run(
        ["make", "-s", f"check-{check}", f"BIN={sysconfig.get_path('scripts')}"],
        cwd=ROOT,
        env={**os.environ, "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=280,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_make_check_leaves_none_out() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    line = next(line for line in makefile.splitlines() if line.startswith("check:"))
    found = [word for word in line.partition("##")[0].split() if word.startswith("check-")]
    assert found == [f"check-{name}" for name in CHECKS]


def test_the_command_line_loads_no_engine() -> None:
    code = (
        "import sys, sandbox.cli\n"
        "print(sorted({'docker', 'libvirt', 'paramiko', 'pyroute2', 'requests', 'asyncio', 'jinja2'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
