"""The command line on the real engines: what it prints, what it refuses, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.level("namespace")


def sandbox(*argv: str, timeout: float = 120, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sandbox", *argv],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env={**os.environ, **(env or {})},
    )


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["run", "nonesuch"], "reactor"),
        (["run", "reactor", "--isolation", "jail"], "namespace"),
        (["run", "reactor", "--memory", "5"], "16m"),
        (["run", "reactor", "--memory", "lots"], "256m"),
        (["run", "reactor", "--memory", "900t"], "at most"),
        (["run", "reactor", "--cpus", "0"], "0.01"),
        (["run", "reactor", "--cpus", "nan"], "number"),
        (["run", "reactor", "--cpus", "10000"], "at most"),
        (["run", "reactor", "--cpus", "-1"], "0.01"),
        (["run", "reactor", "--pids-limit", "1"], "at least"),
        (["run", "reactor", "--name", "-x"], "a-z"),
        (["run", "reactor", "--name", "UPPER"], "a-z"),
        (["run", "reactor", "--name", "a" * 64], "63"),
        (["run", "reactor", "-e", "1X=2"], "NAME=VALUE"),
        (["run", "reactor", "-e", "A=b\nc"], "line break"),
        (["run", "reactor", "-e", "SURELY_NOT_SET_HERE"], "not set"),
        (["run", "reactor", "--cpuset-cpus", "9999"], "no CPU"),
        (["run"], "WORKLOAD"),
        (["rnu"], "run"),
        (["stop", "nobody"], "ps"),
        (["rm", "nobody"], "ps"),
        (["logs", "nobody"], "ps"),
    ],
)
def test_bad_input_gets_one_line(argv: list[str], word: str) -> None:
    done = sandbox(*argv)
    assert done.returncode == 125
    assert done.stdout == ""
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert done.stderr.startswith("sandbox: ")
    assert word in done.stderr


def test_no_root_is_said() -> None:
    # Imported, and the workload looked up, as root; run as nobody: a checkout below /root cannot be read by others.
    script = (
        "import os, sys, sandbox.cli, sandbox.cli.run, sandbox.isolation.local.driver\n"
        "from sandbox.request import resolve\n"
        "made = resolve.make('reactor', 'namespace')\n"
        "resolve.make = lambda *_args, **_kwargs: made\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "sys.argv = ['sandbox', 'run', 'reactor']; sandbox.cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 125
    assert "sudo" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_detached_life() -> None:
    done = sandbox("run", "reactor", "-d", "--name", "cli-life", "--memory", "64m", "--cpus", "0.5", "-e", "A=b")
    assert done.returncode == 0, done.stderr
    ident = done.stdout.strip()
    try:
        listed = json.loads(sandbox("ps", "--format", "json").stdout)
        mine = next(entry for entry in listed if entry["id"] == ident)
        types = {key: type(value).__name__ for key, value in mine.items()}
        assert types == {
            "id": "str",
            "name": "str",
            "workload": "str",
            "isolation": "str",
            "accelerator": "NoneType",
            "running": "bool",
            "paused": "bool",
            "exit_code": "NoneType",
            "status": "str",
            "address": "str",
            "port": "int",
            "url": "str",
            "published": "list",
            "cpus": "float",
            "memory": "int",
            "pids_limit": "int",
            "created": "float",
            "pid": "int",
            "startup": "dict",
        }
        assert mine["memory"] == 64 * 1024 * 1024
        with urllib.request.urlopen(mine["url"], timeout=5) as reply:
            assert reply.read().strip() == b"hello"
        assert "cli-life" in sandbox("ps").stdout
        assert sandbox("ps", "-q").stdout.split() == [ident]
        taken = sandbox("run", "reactor", "--name", "cli-life")
        assert taken.returncode == 125
        assert "taken" in taken.stderr
        refused = sandbox("rm", "cli-life")
        assert refused.returncode == 125
        assert "running" in refused.stderr
        assert sandbox("exec", "cli-life", "sh", "-c", "exit 9").returncode == 9
        assert sandbox("exec", "cli-life", "/nothing").returncode == 127
        assert "8080" in sandbox("logs", "cli-life").stderr, "a server logs to stderr"
        assert sandbox("stop", "cli-life").stdout.strip() == "cli-life"
        assert sandbox("ps", "-q").stdout == ""
        assert "exited" in sandbox("ps", "-a").stdout
    finally:
        assert sandbox("rm", "-f", "cli-life").returncode == 0
    assert sandbox("rm", "-f", "cli-life").returncode == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_foreground_prints_the_address_and_cleans_up(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "sandbox", "run", "reactor"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(url, timeout=5) as reply:
            assert reply.status == 200
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in errors
    assert "\r" not in errors, "progress must not reach a pipe"


def test_detached_with_rm_removes_itself() -> None:
    done = sandbox("run", "reactor", "-d", "--rm", "--name", "cli-rm")
    assert done.returncode == 0, done.stderr
    assert sandbox("exec", "cli-rm", "sh", "-c", "kill -TERM 1").returncode in (0, 143)
    deadline = time.monotonic() + 30
    while "cli-rm" in sandbox("ps", "-a").stdout and time.monotonic() < deadline:
        time.sleep(0.2)
    assert "cli-rm" not in sandbox("ps", "-a").stdout


def test_two_at_once_with_one_name_make_one() -> None:
    command = [sys.executable, "-m", "sandbox", "run", "reactor", "-d", "--name", "only-one"]
    racers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    outcomes = []
    for racer in racers:
        racer.communicate(timeout=120)
        outcomes.append(racer.returncode)
    try:
        assert sorted(outcomes) == [0, 125, 125, 125]
    finally:
        sandbox("rm", "-f", "only-one")


def test_many_at_once_all_serve() -> None:
    command = [sys.executable, "-m", "sandbox", "run", "reactor", "-d", "--name"]
    names = [f"many-{number}" for number in range(6)]
    racers = [
        subprocess.Popen([*command, name], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for name in names
    ]
    try:
        for racer in racers:
            _, errors = racer.communicate(timeout=120)
            assert racer.returncode == 0, errors
        urls = [entry["url"] for entry in json.loads(sandbox("ps", "--format", "json").stdout)]
        assert len(set(urls)) == len(names)
        for url in urls:
            with urllib.request.urlopen(url, timeout=5) as reply:
                assert reply.status == 200
    finally:
        sandbox("rm", "-f", *names)


@pytest.mark.level("namespace")
def test_a_start_that_fails_shows_the_whole_last_output() -> None:
    program = "def deep(n):\n  if n: deep(n - 1)\n  raise ValueError('no \\x1b[2J such')\ndeep(3)"
    done = sandbox("run", "--name", "cli-fails", "--port", "8000", "--", "python3", "-c", program)
    lines = done.stderr.splitlines()
    assert done.returncode == 125
    assert "Traceback (most recent call last):" in lines
    assert sum("in deep" in line for line in lines) == 4
    assert lines[-2] == "ValueError: no ?[2J such"
    said = "sandbox: the workload of cli-fails ended before it served a reply (its last output is above)"
    assert lines[-1] == said


def test_a_reader_that_goes_away_is_no_error() -> None:
    command = f"{sys.executable} -m sandbox ps --format json | true"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_a_full_disk_is_said(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k,nr_inodes=12", "tmpfs", str(small)], check=True)
    try:
        with (small / "filler").open("wb", buffering=0) as stream:
            try:
                while stream.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        done = sandbox("run", "reactor", env={"SANDBOX_STATE_DIR": str(small / "state")})
        assert done.returncode == 125
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert "space" in done.stderr
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_help_loads_no_engine() -> None:
    script = (
        "import sys, sandbox.cli as c\n"
        "try: c.cli.main(['--help'], standalone_mode=False)\nexcept SystemExit: pass\n"
        "import click; from click.testing import CliRunner; CliRunner().invoke(c.cli, ['ps'])\n"
        "print([m for m in ('docker','libvirt','paramiko','pyroute2','requests','asyncio') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "[]"
