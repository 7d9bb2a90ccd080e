"""The command line's verbs on real engines: exec with a terminal, copying, signals, pausing, what is in force."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tarfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contract.conftest import nothing_left_of_the_shared_one
from tests.integration.test_cli import ROOT, sandbox

__all__ = ["nothing_left_of_the_shared_one"]

LEVELS = ("namespace", "container", "vm")


@pytest.fixture(scope="module", params=[pytest.param(level, marks=pytest.mark.level(level)) for level in LEVELS])
def web(request: pytest.FixtureRequest, nothing_left_of_the_shared_one: None) -> Iterator[tuple[str, str]]:
    """(Name, level) of a reactor; shared by tests that leave it running as it was."""
    level = str(request.param)
    name = f"verbs-{level}"
    done = sandbox("run", "reactor", "-d", "--isolation", level, "--name", name, "--memory", "128m", timeout=280)
    assert done.returncode == 0, done.stderr
    yield name, level
    assert sandbox("rm", "-f", name).returncode == 0


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 125, done
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


class Terminal:
    """A terminal with a command on it, seen from the user's side."""

    def __init__(self, *argv: str) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(30, 100)
        self.before = termios.tcgetattr(self.slave)
        self.shown = b""
        self.process = subprocess.Popen(
            [sys.executable, "-m", "sandbox", *argv],
            cwd=ROOT,
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509
        )

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def until(self, text: bytes, timeout: float = 60.0) -> bytes:
        """What is shown up to `text`; what comes after it is left for the next."""
        deadline = time.monotonic() + timeout
        while text not in self.shown:
            assert time.monotonic() < deadline, (text, self.shown)
            if select.select([self.master], [], [], 0.1)[0]:
                self.shown += os.read(self.master, 4096)
        found, _, self.shown = self.shown.partition(text)
        return found

    def end(self) -> int:
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.05)[0]:
                self.shown += os.read(self.master, 4096)
        return self.process.wait(1)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


def test_a_shell_on_a_terminal(web: tuple[str, str]) -> None:
    with Terminal("exec", "-it", "-e", "PS1=ready>", "-w", "/tmp", web[0], "bash", "--norc") as terminal:
        terminal.until(b"ready>")
        assert termios.tcgetattr(terminal.slave) != terminal.before, "the user's terminal is not raw"
        terminal.type(b"stty size; tty; pwd; echo d''one\r")
        said = terminal.until(b"done\r\n")
        assert b"30 100" in said
        assert b"not a tty" not in said
        assert b"\r\n/tmp\r\n" in said
        terminal.type(b"sleep 86399\r")
        terminal.until(b"sleep 86399")
        time.sleep(0.5)
        terminal.type(b"\x03")
        terminal.until(b"ready>")
        terminal.type(b"echo code $?\r")
        terminal.until(b"code 130")
        terminal.resize(41, 122)
        time.sleep(0.5)
        terminal.type(b"stty size\r")
        terminal.until(b"41 122")
        terminal.type(b"exit 9\r")
        assert terminal.end() == 9
        assert termios.tcgetattr(terminal.slave) == terminal.before


def test_killed_it_gives_the_terminal_back_and_ends_the_command(web: tuple[str, str]) -> None:
    with Terminal("exec", "-it", web[0], "sh", "-c", "echo go; exec sleep 86398") as terminal:
        terminal.until(b"go")
        terminal.process.send_signal(signal.SIGTERM)
        assert terminal.end() == 128 + signal.SIGTERM
        assert termios.tcgetattr(terminal.slave) == terminal.before
    ended(web[0], "86398")


def ended(name: str, word: str) -> None:
    """Wait until no process inside has the word in its command line."""
    script = (
        "import glob\nfor p in glob.glob('/proc/[0-9]*/cmdline'):\n"
        " try: d=open(p,'rb').read()\n except OSError: continue\n"
        f" if b'sleep' in d and b'{word[:2]}' b'{word[2:]}' in d: print(d)"
    )
    deadline = time.monotonic() + 20
    while True:
        done = sandbox("exec", name, "/usr/bin/python3", "-I", "-S", "-c", script)
        assert done.returncode == 0, done.stderr
        if not done.stdout or time.monotonic() > deadline:
            break
        time.sleep(0.3)
    assert done.stdout == ""


def test_streams_codes_and_input(web: tuple[str, str]) -> None:
    name = web[0]
    done = sandbox("exec", name, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (done.returncode, done.stdout, done.stderr) == (7, "out\n", "err\n")
    assert sandbox("exec", name, "sh", "-c", "kill -9 $$").returncode == 137
    assert sandbox("exec", name, "/etc/passwd").returncode == 126
    assert sandbox("exec", name, "nonesuch").returncode == 127
    command = [sys.executable, "-m", "sandbox", "exec"]
    data = os.urandom(300_000)
    echoed = subprocess.run([*command, "-i", name, "cat"], cwd=ROOT, input=data, capture_output=True, check=True)
    assert echoed.stdout == data
    assert subprocess.run([*command, name, "cat"], cwd=ROOT, input=b"x", capture_output=True, check=True).stdout == b""
    refused(sandbox("exec", "--timeout", "0.5", name, "sleep", "86397"), "longer")
    ended(name, "86397")


def test_output_comes_as_it_is_written_and_an_interrupt_ends_the_command(web: tuple[str, str]) -> None:
    command = [sys.executable, "-m", "sandbox", "exec", web[0], "sh", "-c", "echo first; exec sleep 86396"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"first\n"
        process.send_signal(signal.SIGINT)
        assert process.communicate(timeout=60)[1].strip() == b""
    assert process.returncode == 130
    ended(web[0], "86396")


def test_a_reader_that_goes_away_ends_the_command(web: tuple[str, str]) -> None:
    command = f"{sys.executable} -m sandbox exec {web[0]} yes 86395 | head -1"
    done = subprocess.run(command, shell=True, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "86395\n"
    assert done.stderr == ""


def test_copied_in_and_out_again(web: tuple[str, str], tmp_path: Path) -> None:
    name = web[0]
    tree = tmp_path / "tree"
    (tree / "inner").mkdir(parents=True)
    (tree / "inner" / "data").write_bytes(os.urandom(200_000))
    (tree / "inner" / "data").chmod(0o640)
    (tree / "link").symlink_to("inner/data")
    assert sandbox("cp", str(tree), f"{name}:/tmp/sent").returncode == 0
    assert sandbox("exec", name, "sh", "-c", "cat /tmp/sent/link | wc -c").stdout.strip() == "200000"
    assert sandbox("exec", name, "stat", "-c", "%U %a", "/tmp/sent/inner/data").stdout.strip() == "sandbox 640"
    assert sandbox("cp", f"{name}:/tmp/sent", str(tmp_path / "back")).returncode == 0
    assert (tmp_path / "back" / "link").read_bytes() == (tree / "inner" / "data").read_bytes()
    assert os.readlink(tmp_path / "back" / "link") == "inner/data"
    assert (tmp_path / "back" / "inner" / "data").stat().st_uid == os.geteuid()
    done = subprocess.run(
        f"{sys.executable} -m sandbox cp {name}:/tmp/sent/. - | {sys.executable} -m sandbox cp - {name}:/tmp",
        shell=True,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert sandbox("exec", name, "cmp", "/tmp/inner/data", "/tmp/sent/inner/data").returncode == 0
    assert sandbox("exec", name, "rm", "-r", "/tmp/inner", "/tmp/link", "/tmp/sent").returncode == 0


def test_copying_refuses_with_one_line_and_leaves_nothing(web: tuple[str, str], tmp_path: Path) -> None:
    name = web[0]
    (tmp_path / "f").write_text("1")
    refused(sandbox("cp", str(tmp_path / "f"), f"{name}:/etc/"), "read-only", "/tmp")
    refused(sandbox("cp", str(tmp_path / "f"), f"{name}:/usr/new"), "read-only")
    refused(sandbox("cp", f"{name}:/tmp/nothing", str(tmp_path)), "there is no")
    refused(sandbox("cp", f"{name}:/etc/shadow", str(tmp_path)), "Permission denied")
    script = (
        "mkdir /tmp/evil; cd /tmp/evil; cp /bin/true suid; chmod 6755 suid; mkdir a; ln -s /etc/passwd out; "
        "mkdir /tmp/deep; mkdir /tmp/deep/a; ln -s ../../x /tmp/deep/a/up; mkdir /tmp/pipe; mkfifo /tmp/pipe/p"
    )
    assert sandbox("exec", name, "sh", "-c", script).returncode == 0
    for source in ("evil", "deep", "pipe"):
        refused(sandbox("cp", f"{name}:/tmp/{source}", str(tmp_path / "stolen")), "the sandbox")
    assert sandbox("cp", f"{name}:/tmp/evil/suid", str(tmp_path)).returncode == 0
    assert (tmp_path / "suid").stat().st_mode & 0o7777 == 0o755
    refused(sandbox("cp", f"{name}:/tmp/evil/out", str(tmp_path)), "-L")
    assert sandbox("cp", "-L", f"{name}:/tmp/evil/out", str(tmp_path / "followed")).returncode == 0
    assert "sandbox" in (tmp_path / "followed").read_text(), "it is the sandbox's own /etc/passwd"
    refused(sandbox("cp", "--max-size", "1k", f"{name}:/tmp/evil/suid", str(tmp_path / "large")), "--max-size")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f", "followed", "suid"]
    assert sandbox("exec", name, "rm", "-r", "/tmp/evil", "/tmp/deep", "/tmp/pipe").returncode == 0


def test_a_file_that_cannot_be_read_inside_leaves_nothing_outside(web: tuple[str, str], tmp_path: Path) -> None:
    name = web[0]
    script = "mkdir /tmp/half; echo 1 > /tmp/half/a; echo 2 > /tmp/half/b; chmod 0 /tmp/half/b"
    assert sandbox("exec", name, "sh", "-c", script).returncode == 0
    refused(sandbox("cp", f"{name}:/tmp/half", str(tmp_path)), "Permission denied")
    assert list(tmp_path.iterdir()) == []
    assert sandbox("exec", name, "rm", "-rf", "/tmp/half").returncode == 0


def test_an_archive_to_the_host_has_nothing_of_the_sandboxs(web: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "etc.tar"
    with path.open("wb") as stream:
        command = [sys.executable, "-m", "sandbox", "cp", f"{web[0]}:/etc/default", "-"]
        subprocess.run(command, cwd=ROOT, stdout=stream, check=True)
    with tarfile.open(path) as found:
        assert {one.name.split("/")[0] for one in found} == {"default"}
        assert {(one.uid, one.gid, one.mode & 0o7000) for one in found} == {(0, 0, 0)}


def test_paused_and_unpaused(web: tuple[str, str]) -> None:
    name = web[0]
    assert sandbox("pause", name, name).stdout.split() == [name, name]
    try:
        assert "(paused)" in next(line for line in sandbox("ps").stdout.splitlines() if name in line)
        (found,) = json.loads(sandbox("inspect", name).stdout)
        assert found["state"]["paused"] is True
        refused(sandbox("rm", name), "running")
        refused(sandbox("exec", name, "true"), "paused")
    finally:
        assert sandbox("unpause", name).returncode == 0
    assert "(paused)" not in sandbox("ps").stdout
    assert sandbox("exec", name, "true").returncode == 0


def test_what_is_in_force_is_what_was_asked(web: tuple[str, str]) -> None:
    name, level = web
    (found,) = json.loads(sandbox("inspect", name).stdout)
    assert found["isolation"] == level
    assert found["requested"]["memory"] == found["effective"]["limits"]["memory"] == 128 * 1024 * 1024
    settings = {one["setting"]: one for one in found["settings"]}
    assert {setting for setting, one in settings.items() if one["differs"]} == set()
    for setting in ("cpus", "memory", "pids_limit", "address", "uid", "mount /"):
        assert settings[setting]["differs"] is False, f"{setting} cannot be observed"
    page = sandbox("inspect", "--format", "table", name).stdout
    assert "128MiB" in page
    assert "DIFFERS" not in page
    assert "first_reply" in page


def test_what_it_uses(web: tuple[str, str]) -> None:
    (found,) = json.loads(sandbox("stats", "--no-stream", "--format", "json", web[0]).stdout)
    assert 0 <= found["cpu_percent"] < 300
    assert 1024 * 1024 < found["memory"] < 1024**3
    assert found["pids"] is None or found["pids"] >= 2
    assert found["net_received"] > 0
    lines = sandbox("stats", web[0]).stdout.splitlines()
    assert len(lines) == 2
    assert web[0] in lines[1]


def test_the_log(web: tuple[str, str]) -> None:
    """A server logs to its standard error; so does `logs`, and nothing to its own output."""
    name, _ = web
    found = sandbox("logs", name)
    text = found.stderr
    assert "8080" in text
    assert found.stdout == ""
    assert sandbox("logs", "--tail", "0", name).stderr == ""
    assert sandbox("logs", "-n", "1", name).stderr == text.splitlines(keepends=True)[-1]
    assert sandbox("logs", "--since", "1h", name).stderr == text
    assert sandbox("logs", "--until", "1h", name).stderr == ""
    refused(sandbox("logs", "--tail", "-1", name), "all")


def test_its_name_is_completed(web: tuple[str, str]) -> None:
    env = {"_SANDBOX_COMPLETE": "bash_complete", "COMP_WORDS": "sandbox\nstop\nverbs-", "COMP_CWORD": "2"}
    done = subprocess.run(
        [sys.executable, "-c", "import sys; sys.argv = ['sandbox']; import sandbox.cli as c; c.main()"],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert f"plain,{web[0]}" in done.stdout.splitlines()


@pytest.mark.level("namespace")
def test_signals_and_codes() -> None:
    names = ["verbs-term", "verbs-kill"]
    try:
        for name in names:
            done = sandbox("run", "-d", "--name", name, "--", "sh", "-c", "trap 'exit 3' TERM; sleep 86400 & wait")
            assert done.returncode == 0, done.stderr
        refused(sandbox("kill", "-s", "TREM", names[0]), "TERM")
        waiting = subprocess.Popen(
            [sys.executable, "-m", "sandbox", "wait", *names], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        assert sandbox("kill", "-s", "TERM", names[0]).stdout.split() == [names[0]]
        assert sandbox("pause", names[1]).returncode == 0
        assert sandbox("kill", names[1]).returncode == 0  # a paused one too
        assert waiting.communicate(timeout=30)[0] == "3\n137\n"
        listed = {one["name"]: one for one in json.loads(sandbox("ps", "-a", "--format", "json").stdout)}
        assert [listed[name]["status"] for name in names] == ["exited (3)", "exited (137)"]
        refused(sandbox("kill", names[0]), "not running")
        refused(sandbox("pause", names[0]), "not running")
        refused(sandbox("exec", names[0], "true"), "not running")
        refused(sandbox("cp", f"{names[0]}:/etc/passwd", "/tmp/verbs-none"), "not running")
    finally:
        assert sandbox("rm", "-f", *names).returncode == 0


@pytest.mark.level("namespace")
def test_what_happens_is_told() -> None:
    command = [sys.executable, "-m", "sandbox", "events", "--format", "json"]
    life = ["create", "start", "die", "remove"]
    # No buffer: one would take lines that select(2) then knows nothing of.
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout is not None
        told: dict[str, list[str]] = {}
        try:
            # It tells what it sees from its first look on: sandboxes come and go until it has told of a whole life.
            for number in range(20):
                name = f"verbs-told-{number}"
                assert sandbox("run", "-d", "--name", name, "--", "sleep", "86400").returncode == 0
                time.sleep(0.6)
                assert sandbox("rm", "-f", name).returncode == 0
                time.sleep(0.6)
                while select.select([process.stdout], [], [], 0)[0]:
                    line = json.loads(process.stdout.readline())
                    told.setdefault(line["name"], []).append(line["event"])
                if told.get(name) == life:
                    break
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=20)
    assert told.get(name) == life, told
    assert process.returncode == 130
