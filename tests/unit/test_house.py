"""The rules of the repository: those of `make check`, which people and CI run as well, and one for docstrings."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHECKS = ("format", "lint", "types", "imports", "spelling", "shell")
RIDDLE = re.compile(r"(What|Who|Whether|Where|Which|How|Whose|When) ")
"""The beginning of a docstring that is a fragment: `Whether X.` for `Return whether X.`."""


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


def docstrings(source: str) -> Iterator[tuple[int, str]]:
    """Yield the docstrings of a module and all that it defines, those below assignments included, with their lines."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield node.lineno, text


def riddles(path: Path) -> list[str]:
    """Return `path:line: first line` for each docstring that begins as a fragment and is not a question."""
    return [
        f"{path.relative_to(ROOT)}:{line}: {first}"
        for line, text in docstrings(path.read_text(encoding="utf-8"))
        for first in [text.strip().partition("\n")[0]]
        if RIDDLE.match(first) and not first.endswith("?")
    ]


def test_docstrings_begin_with_a_sentence() -> None:
    folders = ("sandbox", "workloads", "benchmarks", "tools")
    paths = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert len(paths) > 100
    assert [line for path in paths for line in riddles(path)] == []


@pytest.mark.parametrize("text", ["Whether it runs.", "What is there\n\nMore.", " How much of it."])
def test_a_fragment_is_found_in_every_place(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / "module.py"
    for source in (f"{text!r}", f"def f():\n    {text!r}", f"class C:\n    x = 1\n    {text!r}"):
        path.write_text(source, encoding="utf-8")
        assert len(riddles(path)) == 1
    path.write_text("'Whether it runs?'\n'Return whether it runs.'", encoding="utf-8")
    assert riddles(path) == []
