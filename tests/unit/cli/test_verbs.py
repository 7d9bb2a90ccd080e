"""The commands on a fake driver: their output, errors and exit codes; terminals; completion."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import cli
from sandbox.cli import COMMANDS, SECTIONS, signals
from sandbox.cli.cp import operand, parse_size
from sandbox.cli.events import Seen, changes
from sandbox.cli.facts import compare
from sandbox.cli.logs import parse_tail, parse_time
from sandbox.cli.output import binary_size, decimal_size, one_line, plain
from sandbox.errors import SandboxError, SpecError
from sandbox.isolation.in_force import Inspection
from sandbox.phases import Status
from sandbox.spec import MIB, Limits, Mount, Publish
from sandbox.state import files
from sandbox.state.record import Exit, Record
from sandbox.state.store import Store
from tests.unit import faked

ROOT = Path(__file__).resolve().parents[3]
ESCAPES = "\x1b]0;owned\x07\x1b[31m\x9b2J\u202e\r\n"


class Done(NamedTuple):
    code: int
    out: str
    err: str


Run = Callable[..., Done]


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary state directory, and the fake driver."""
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path / "state"))
    loaded = dict(sandbox_loaded())
    faked.install()
    yield tmp_path / "state"
    sandbox_loaded().clear()
    sandbox_loaded().update(loaded)


def sandbox_loaded() -> dict[str, Any]:
    import sandbox.isolation

    return sandbox.isolation._loaded


@pytest.fixture
def run(state: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command `sandbox` in this process."""

    def call(*argv: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["sandbox", *argv])
        capfd.readouterr()
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        try:
            code = cli._run()
        finally:
            for number, handler in before.items():  # at its end the command ignores them
                signal.signal(number, handler)
        return Done(code, *capfd.readouterr())

    return call


def refused(done: Done, *words: str) -> None:
    """Assert that the command failed with 125 and one line on standard error that contains the words."""
    assert done.code == 125, done
    assert done.err.startswith("sandbox: ")
    assert len(done.err.splitlines()) == 1, done.err
    for word in words:
        assert word in done.err


class TestHelp:
    def test_every_command_is_there_and_says_what_it_does(self) -> None:
        context = click.Context(cli.cli)
        for name in COMMANDS:
            command = cli.cli.get_command(context, name)
            assert command is not None
            assert command.help
        files = {path.stem for path in (ROOT / "sandbox" / "cli").glob("*.py")}
        assert set(COMMANDS) <= files

    def test_every_verb_has_examples(self) -> None:
        context = click.Context(cli.cli)
        verbs = [*SECTIONS["Run and look"], *SECTIONS["End and remove"]]
        without = []
        for name in verbs:
            command = cli.cli.get_command(context, name)
            assert command is not None
            if "Example" not in (command.help or "") or f"sandbox {name}" not in (command.help or ""):
                without.append(name)
        assert without == ["prune"]  # its only option is --dry-run

    def test_the_group_names_all_of_them_in_order(self, run: Run) -> None:
        done = run("--help")
        places = [done.out.index(f"\n  {name} ") for name in COMMANDS]
        assert places == sorted(places)

    def test_a_wrong_name_gets_the_right_one(self, run: Run) -> None:
        refused(run("unpuase", "x"), "unpause")


class TestPlain:
    @given(st.text())
    def test_nothing_that_steers_a_terminal_is_left(self, text: str) -> None:
        assert plain(text).isprintable()
        assert one_line(text).isprintable()

    def test_escape_sequences_in_errors_tables_and_names(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        record = faked.add("web", workload=f"evil{ESCAPES}", noted={"accelerator": ESCAPES})

        def fail(self: faked.FakeSandbox) -> Inspection:
            raise SandboxError(f"the engine says {ESCAPES}", ESCAPES)

        monkeypatch.setattr(faked.FakeSandbox, "inspection", fail)
        monkeypatch.setattr(faked.FakeSandbox, "kill", lambda self, _number: fail(self))
        for argv in (["ps"], ["inspect", "--format", "table", "web"], ["stats", "web"], ["kill", "web"]):
            done = run(*argv)
            assert re.fullmatch(r"[^\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]*", done.out + done.err), argv
        for argv in (["ps", "--format", "json"], ["inspect", "web"]):
            done = run(*argv)
            assert "\x1b" not in done.out
            assert json.loads(done.out)[0]["id"] == record.id
        refused(run("kill", "web"), "the engine says")

    def test_what_a_sandbox_calls_its_processes_is_stripped_in_inspect(self, run: Run) -> None:
        mount = f"1 0 0:1 / /{ESCAPES.replace(chr(10), '')} ro - title none rw\n"
        record = faked.add("web", fake={"files": {"mountinfo": mount}})
        done = run("inspect", "--format", "table", record.name)
        assert "title" in done.out
        assert "\x1b" not in done.out
        assert "\x07" not in done.out

    def test_sizes(self) -> None:
        assert [binary_size(n) for n in (None, 0, 1023, 1536, 256 * MIB)] == ["-", "0B", "1023B", "1.5KiB", "256MiB"]
        assert [decimal_size(n) for n in (None, 999, 1500, 10**9)] == ["-", "999B", "1.5kB", "1GB"]


class TestPs:
    def test_states_ports_and_exit_codes(self, run: Run) -> None:
        faked.add("up", publish=(Publish(8000, 8080),))
        faked.add("still", noted={"paused": True}, fake={"paused": True}, port=None)
        faked.add("moved-on", noted={"paused": True}, fake={"paused": False})
        faked.add("killed", running=False, code=137)
        faked.add("asked", running=False, fake={"exit_code": 3})
        faked.add("unknown", running=False)
        table = {line.split()[1]: line for line in run("ps", "-a").out.splitlines()[1:]}
        assert "127.0.0.1:8000->8080" in table["up"]
        assert "(paused)" in table["still"]
        assert "(paused)" not in table["moved-on"]
        assert "exited (137)" in table["killed"]
        assert "exited (3)" in table["asked"]
        assert re.search(r"exited\s", table["unknown"])
        found = {one["name"]: one for one in json.loads(run("ps", "-a", "--format", "json").out)}
        assert found["still"]["port"] is None
        assert found["still"]["url"] is None
        assert found["still"]["paused"] is True
        assert found["killed"]["exit_code"] == 137
        assert found["up"]["published"] == [{"host": 8000, "inside": 8080}]
        assert set(run("ps", "-q").out.split()) == {found[name]["id"] for name in ("up", "still", "moved-on")}
        assert len(json.loads(run("ps", "-a", "-q", "--format", "json").out)) == 6

    def test_nothing_there(self, run: Run) -> None:
        done = run("ps")
        assert done.code == 0
        assert done.out.startswith("ID ")
        assert done.err == ""  # the hint is for terminals


class TestSignals:
    @pytest.mark.parametrize(
        ("text", "number"),
        [("KILL", 9), ("SIGKILL", 9), ("kill", 9), ("sigterm", 15), ("9", 9), ("HUP", 1), ("RTMIN+3", 37), ("64", 64)],
    )
    def test_names_and_numbers(self, text: str, number: int) -> None:
        assert signals.parse(text) == number

    @pytest.mark.parametrize("text", ["0", "65", "-1", "", "NOSUCH", "SIG", "1e1", "RTMAX+1", "9 ", "٣"])
    def test_others_are_refused(self, text: str) -> None:
        with pytest.raises(SpecError):
            signals.parse(text)

    def test_with_a_suggestion(self, run: Run) -> None:
        record = faked.add("web")
        refused(run("kill", "-s", "TREM", "web"), "TERM")
        assert "kill" not in faked.note(record)

    def test_kill_passes_it_on(self, run: Run) -> None:
        record = faked.add("web")
        assert run("kill", "web") == (0, "web\n", "")
        assert faked.note(record)["kill"] == 9
        assert run("kill", "--signal", "SIGUSR1", record.id[:8]).code == 0
        assert faked.note(record)["kill"] == 10


class TestVerbs:
    def test_pause_and_unpause(self, run: Run) -> None:
        record = faked.add("web")
        assert run("pause", "web") == (0, "web\n", "")
        assert faked.note(record)["paused"] is True
        assert "(paused)" in run("ps").out
        assert run("unpause", "web").code == 0
        assert "(paused)" not in run("ps").out
        assert not Store().load(record.id).paused

    def test_one_at_a_time(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        record = faked.add("web")
        monkeypatch.setattr("sandbox.lifecycle.pause.PATIENCE", 0.1)
        with Store().lock(record.id):
            refused(run("pause", "web"), "another command", "web")
            refused(run("rm", "-f", "web"), "another command")
            assert run("kill", "web").code == 0  # `kill` does not wait for other commands
        assert run("pause", "web").code == 0

    def test_wait_prints_codes(self, run: Run) -> None:
        faked.add("a", running=False, fake={"exit_code": 0})
        faked.add("b", running=False, code=137)
        assert run("wait", "a", "b") == (0, "0\n137\n", "")

    def test_wait_says_when_nobody_knows(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sandbox.lifecycle.wait._SETTLE", 0.05)
        faked.add("a", running=False)
        faked.add("b", running=False, fake={"exit_code": 4})
        done = run("wait", "a", "b")
        assert done.out == "4\n"
        refused(done, "exit code")

    def test_stop_and_rm_take_time_and_force(self, run: Run) -> None:
        record = faked.add("web")
        refused(run("rm", "web"), "running")
        assert run("stop", "-t", "3", "web").code == 0
        assert faked.note(record)["stop"] == 3.0
        assert "exited (143)" in run("ps", "-a").out
        assert run("rm", "web").out == "web\n"
        refused(run("rm", "web"), "no sandbox")
        assert run("rm", "-f", "web").code == 0

    def test_rm_of_several_tells_which_one_stays(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """They are removed together; one that cannot be removed does not keep the others."""
        records = [faked.add(name, running=False) for name in ("a", "b", "c")]
        inside = str(records[1].directory / "x")
        monkeypatch.setattr(files, "mounts_below", lambda _: [inside])
        done = run("rm", "a", "b", records[2].id)
        refused(done, "b", "mounted")
        assert sorted(done.out.split()) == sorted(["a", records[2].id])
        assert Store().ids() == [records[1].id]

    @pytest.mark.parametrize(
        "argv",
        [["stop", "-t", "-1", "web"], ["stop", "-t", "soon", "web"], ["kill"], ["wait"], ["pause"], ["unpause", "--x"]],
    )
    def test_bad_input_gets_one_line(self, run: Run, argv: list[str]) -> None:
        refused(run(*argv))

    @pytest.mark.parametrize("verb", ["inspect", "kill", "pause", "unpause", "wait", "stop", "rm", "stats"])
    def test_each_is_tried_and_the_missing_told(self, run: Run, verb: str) -> None:
        refused(run(verb, "nobody"), "nobody", "ps")


class TestExecTimeout:
    def test_holds_whoever_waits_for_an_answer_meanwhile(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """A driver that waits in slices, and handles a TimeoutError at the end of each, must not swallow it."""
        faked.add("web")
        attach, made = faked.FakeSandbox.attach, []

        def slow(self: faked.FakeSandbox, *args: Any, **options: Any) -> Any:
            for _ in range(5):
                with suppress(TimeoutError):
                    time.sleep(0.1)
            made.append(attach(self, *args, **options))
            return made[-1]

        monkeypatch.setattr(faked.FakeSandbox, "attach", slow)
        refused(run("exec", "--timeout", "0.2", "web", "sleep", "600"), "longer", "0.2")
        assert len(made) == 1, "it was cut short while it started, when nobody would have ended it"
        assert made[0].wait() == 128 + signal.SIGKILL
        assert run("exec", "--timeout", "60", "web", "true").code == 0


class TestLogs:
    def test_tail_and_follow(self, run: Run) -> None:
        faked.add("web")
        assert run("logs", "web").out == "follow=False tail=None\n"
        assert run("logs", "-f", "--tail", "7", "web").out == "follow=True tail=7\n"
        assert run("logs", "-n", "all", "web").out == "follow=False tail=None\n"
        refused(run("logs", "--tail", "some", "web"), "all")
        refused(run("logs", "--since", "yesterday", "web"), "--since", "10m")
        refused(run("logs", "--until", "tomorrow", "web"), "--until", "10m")

    @pytest.mark.parametrize(
        ("text", "seconds"),
        [
            ("10m", 1000 - 600),
            ("1h30m", 1000 - 5400),
            ("1.5s", 998.5),
            ("250ms", 999.75),
            ("1790000000", 1790000000),
            ("1790000000.25", 1790000000.25),
            ("2026-01-31T12:00:00Z", 1769860800),
            ("2026-01-31T12:00:00.5+01:00", 1769857200.5),
        ],
    )
    def test_times(self, text: str, seconds: float) -> None:
        assert parse_time("--since", text, 1000.0) == pytest.approx(seconds)

    def test_a_time_without_zone_is_local(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TZ", "UTC-2")
        time.tzset()
        try:
            assert parse_time("--since", "2026-01-31T12:00:00", 0) == 1769860800 - 7200
            assert parse_time("--since", "2026-01-31", 0) == 1769860800 - 12 * 3600 - 7200
        finally:
            monkeypatch.undo()
            time.tzset()

    @pytest.mark.parametrize(
        "text", ["", "10", "-5m", "5 m", "m", "1h-5m", "9" * 400 + "h", "2026-13-01", "99999-01-01"]
    )
    def test_no_times(self, text: str) -> None:
        if text == "10":
            assert parse_time("--since", text, 1000.0) == 10
            return
        with pytest.raises(SpecError):
            parse_time("--since", text, 1000.0)

    @given(st.text(max_size=30))
    def test_any_text_is_a_time_or_refused(self, text: str) -> None:
        try:
            assert isinstance(parse_time("--since", text, 1000.0), float)
            parse_tail(text)
        except SpecError:
            return


class TestInspect:
    def test_requested_and_effective_side_by_side(self, run: Run) -> None:
        record = faked.add("web", mounts=(Mount("/srv", "/data", read_only=True),))
        (found,) = json.loads(run("inspect", "web").out)
        assert found["id"] == record.id
        assert found["requested"]["memory"] == 256 * MIB
        assert found["effective"]["limits"]["memory"] == 256 * MIB
        assert found["effective_error"] is None
        assert found["startup"]["total"] == pytest.approx(0.025)
        assert found["resources"]["address"] == record.address
        settings = {one["setting"]: one for one in found["settings"]}
        assert settings["memory"]["differs"] is False
        assert settings["mount /data"] == {
            "setting": "mount /data",
            "requested": "ro",
            "effective": "missing",
            "differs": True,
        }
        page = run("inspect", "--format", "table", "web").out
        assert "DIFFERS" in page
        assert re.search(r"memory +256MiB +256MiB$", page, re.MULTILINE)

    @pytest.mark.usefixtures("state")
    def test_what_was_asked_is_never_taken_for_what_is(self) -> None:
        record = faked.add("web")
        facts = {fact.setting: fact for fact in compare(record, None)}
        assert all(fact.effective is None and fact.differs is None for fact in facts.values())
        limits = Limits(0.5, 1, 129, "the test", None)
        low = faked.inspected(record, limits, status="Uid:\t0\t0\t0\t0\n", mountinfo="")
        facts = {fact.setting: fact for fact in compare(record, low)}
        assert {name for name, fact in facts.items() if fact.differs} == {"cpus", "memory", "pids_limit", "uid"}
        assert facts["disk"].differs is None

    def test_several_and_a_missing_one(self, run: Run) -> None:
        faked.add("a")
        done = run("inspect", "a", "nobody")
        assert [one["name"] for one in json.loads(done.out)] == ["a"]
        refused(done, "nobody")

    def test_an_engine_that_does_not_answer(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(self: faked.FakeSandbox) -> Inspection:
            raise SandboxError("dockerd is away")

        monkeypatch.setattr(faked.FakeSandbox, "inspection", fail)
        faked.add("a")
        done = run("inspect", "a")
        assert done.code == 0
        assert json.loads(done.out)[0]["effective_error"] == "dockerd is away"
        assert "dockerd is away" in run("inspect", "--format", "table", "a").out


class TestStats:
    @pytest.fixture(autouse=True)
    def _short(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("sandbox.cli.stats.SINGLE", 0.01)

    def test_once_in_a_pipe(self, run: Run) -> None:
        faked.add("web", fake={"stats": [1.5, 64 * MIB, 4, 1500, 2_000_000, None, 0]})
        faked.add("bare")
        faked.add("ended", running=False)
        done = run("stats")
        assert done.code == 0
        rows = {line.split()[1]: re.split(r" {3,}", line) for line in done.out.splitlines()}
        assert rows["web"][2:] == ["0.00%", "64MiB / 256MiB", "25.00%", "1.5kB / 2MB", "- / 0B", "4"]
        assert rows["bare"][2:] == ["-", "- / 256MiB", "-", "- / -", "- / -", "-"]
        assert "ended" not in rows
        assert run("stats", "ended").out.splitlines()[1].split()[1] == "ended"
        (found,) = json.loads(run("stats", "--no-stream", "--format", "json", "web").out)
        assert found["memory"] == 64 * MIB
        assert found["block_read"] is None
        refused(run("stats", "--stream", "--no-stream"), "exclude")

    def test_processor_time_is_over_the_time_between(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        used = iter([1.0, 1.5])
        clock = iter([10.0, 10.25])
        from sandbox.isolation.base import Stats

        monkeypatch.setattr(faked.FakeSandbox, "stats", lambda _self: Stats(next(used), None, None))
        monkeypatch.setattr("sandbox.cli.stats.time.monotonic", lambda: next(clock))
        faked.add("web")
        assert run("stats", "web").out.splitlines()[1].split()[2] == "200.00%"


def start(*argv: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.unit.faked", *argv], cwd=ROOT, **options)


class TestExec:
    def test_output_errors_and_code(self, run: Run) -> None:
        record = faked.add("web")
        done = run("exec", "-e", "A=b", "-w", "/tmp", "--root", "web", "sh", "-c", "echo out; echo err >&2; exit 7")
        assert done == (7, "out\n", "err\n")
        assert faked.note(record)["attach"] == {
            "argv": ["sh", "-c", "echo out; echo err >&2; exit 7"],
            "root": True,
            "env": [["A", "b"]],
            "workdir": "/tmp",
        }
        assert run("exec", "web", "sh", "-c", "kill -9 $$").code == 137
        assert run("exec", "web", "echo", "-i", "--timeout", "1").out == "-i --timeout 1\n"
        assert run("exec", "web", "/no/such").code == 127

    @pytest.mark.parametrize(
        ("argv", "word"),
        [
            (["exec", "web"], "COMMAND"),
            (["exec", "--bogus", "web", "ls"], "bogus"),
            (["exec", "-e", "1A=b", "web", "ls"], "NAME=VALUE"),
            (["exec", "-w", "tmp", "web", "ls"], "absolute"),
            (["exec", "web", ""], "empty"),
            (["exec", "--timeout", "0", "web", "ls"], "timeout"),
            (["exec", "--timeout", "0.2", "web", "sleep", "60"], "longer --timeout"),
        ],
    )
    def test_bad_input_gets_one_line(self, run: Run, argv: list[str], word: str) -> None:
        faked.add("web")
        refused(run(*argv), word)

    def test_input_is_passed_on_only_where_asked(self, state: Path) -> None:
        with start("exec", "-i", "web", "cat", stdin=-1, stdout=-1, env=with_web()) as process:
            assert process.communicate(b"hello")[0] == b"hello"
        shutil.rmtree(state)
        with start("exec", "web", "cat", stdin=-1, stdout=-1, env=with_web()) as process:
            assert process.communicate(b"hello")[0] == b""

    @pytest.mark.usefixtures("state")
    def test_output_comes_as_it_is_written(self) -> None:
        with start("exec", "web", "sh", "-c", "echo one; read line", stdout=-1, env=with_web()) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"one\n"
            process.terminate()

    @pytest.mark.usefixtures("state")
    def test_no_terminal_to_give(self) -> None:
        with start("exec", "-it", "web", "true", stdin=subprocess.DEVNULL, stderr=-1, env=with_web()) as process:
            errors = process.communicate()[1]
        assert process.returncode == 125
        assert b"not a TTY" in errors

    @pytest.mark.usefixtures("state")
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_an_interrupt_ends_the_command_inside(self, tmp_path: Path, number: int) -> None:
        script = f"echo $$; trap '' TERM INT; while :; do sleep 0.05; echo x >> {tmp_path}/alive; done"
        with start("exec", "web", "sh", "-c", script, stdout=-1, stderr=-1, env=with_web()) as process:
            assert process.stdout is not None
            inside = int(process.stdout.readline())
            process.send_signal(number)
            errors = process.communicate()[1]
        assert process.returncode == 128 + number
        assert errors.strip() == b""  # click ends the line of the ^C
        with pytest.raises(ProcessLookupError):
            os.kill(inside, 0)


def with_web() -> dict[str, str]:
    return {**os.environ, "FAKED": json.dumps([{"name": "web"}]), "TERM": "xterm"}


class Terminal:
    """A command on a terminal, seen from the user's side."""

    def __init__(self, *argv: str, env: dict[str, str]) -> None:
        self.master, self.slave = pty.openpty()
        self.resize(30, 100)
        self.before = termios.tcgetattr(self.slave)
        self.shown = b""
        self.process = start(
            *argv, stdin=self.slave, stdout=self.slave, stderr=self.slave, env=env, start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )  # fmt: skip

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, data: bytes) -> None:
        os.write(self.master, data)

    def until(self, text: bytes, timeout: float = 20.0) -> bytes:
        """Read the output up to and including `text`; the rest is left for the next call."""
        deadline = time.monotonic() + timeout
        while text not in self.shown:
            assert time.monotonic() < deadline, self.shown
            if select.select([self.master], [], [], 0.1)[0]:
                self.shown += os.read(self.master, 4096)
        found, _, self.shown = self.shown.partition(text)
        return found

    def end(self) -> int:
        deadline = time.monotonic() + 20
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.05)[0]:
                self.shown += os.read(self.master, 4096)
        return self.process.wait(1)

    def restored(self) -> bool:
        return termios.tcgetattr(self.slave) == self.before

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_error: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.master)
        os.close(self.slave)


class TestTerminal:
    @pytest.mark.usefixtures("state")
    def test_a_shell_its_size_and_its_keys(self) -> None:
        script = 'trap "echo interrupted" INT; trap "stty size" WINCH; stty size; echo go; while :; do sleep 0.1; done'
        with Terminal("exec", "-it", "web", "sh", "-c", script, env=with_web()) as terminal:
            assert b"30 100" in terminal.until(b"go")
            assert not terminal.restored(), "the terminal is not raw"
            terminal.type(b"\x03")
            terminal.until(b"interrupted")
            terminal.resize(40, 120)
            terminal.until(b"40 120")
            terminal.type(b"\x1c")  # Ctrl-\ is sent to the command too, and ends it
            assert terminal.end() == 128 + signal.SIGQUIT
            assert terminal.restored()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
    @pytest.mark.usefixtures("state")
    def test_a_signal_gives_the_terminal_back(self, number: int) -> None:
        with Terminal("exec", "-it", "web", "sh", "-c", "echo go; exec sleep 60", env=with_web()) as terminal:
            terminal.until(b"go")
            assert not terminal.restored()
            terminal.process.send_signal(number)
            assert terminal.end() == 128 + number
            assert terminal.restored()

    def test_an_error_gives_the_terminal_back(self, state: Path) -> None:
        with Terminal("exec", "-it", "web", "/no/such", env=with_web()) as terminal:
            assert terminal.end() == 127
            assert terminal.restored()
            assert b"no command" in terminal.shown
        shutil.rmtree(state)
        with Terminal("exec", "-it", "--timeout", "1", "web", "sleep", "60", env=with_web()) as terminal:
            assert terminal.end() == 125
            assert terminal.restored()
            assert b"longer" in terminal.shown

    @pytest.mark.usefixtures("state")
    def test_stats_are_painted_until_interrupted(self) -> None:
        with Terminal("stats", env=with_web()) as terminal:
            terminal.until(b"\x1b[2J")
            terminal.until(b"web")
            terminal.until(b"\x1b[H")
            terminal.until(b"web")
            terminal.type(b"\x03")
            assert terminal.end() == 0
        with Terminal("stats", env={**with_web(), "FAKED": "[]", "TERM": "dumb"}) as terminal:
            assert b"\x1b" not in terminal.until(b"ID") + terminal.until(b"ID")
            terminal.type(b"\x03")
            assert terminal.end() == 0

    @pytest.mark.usefixtures("state")
    def test_an_empty_list_has_a_hint(self) -> None:
        with Terminal("ps", env={**with_web(), "FAKED": "[]"}) as terminal:
            terminal.until(b"ps -a")
            assert terminal.end() == 0


class TestEvents:
    @pytest.mark.usefixtures("state")
    def test_what_happens_is_told(self) -> None:
        old = faked.add("old")
        with start("events", "--format", "json", stdout=-1, stderr=-1, env={**os.environ, "FAKED": "[]"}) as process:
            try:
                told = self._follow(process, old)
            finally:
                process.send_signal(signal.SIGINT)
                errors = process.communicate()[1]
        assert told == ["create new", "start new", "die old 137", "remove old", "die new", "remove new"]
        assert errors.strip() == b""
        assert process.returncode == 130

    @staticmethod
    def _follow(process: subprocess.Popen[bytes], old: Record) -> list[str]:
        assert process.stdout is not None
        # It reports changes after its first scan only, so create and remove sandboxes until it has reported one.
        number = 0
        while not select.select([process.stdout], [], [], 0.5)[0]:
            number += 1
            assert number < 100
            Store().remove([faked.add(f"probe-{number}").id])
            faked.add(f"kept-{number}")
        store, told = Store(), []
        new = faked.add("new")
        while True:
            line = json.loads(process.stdout.readline())
            if line["name"] not in ("old", "new"):
                continue
            code = "" if line["exit_code"] is None else f" {line['exit_code']}"
            told.append(f"{line['event']} {line['name']}{code}")
            if told[-1] == "start new":
                record = store.load(old.id)
                record.status, record.exit = Status.EXITED, Exit(137, 0.0)
                store.save(record)
            elif told[-1] == "die old 137":
                assert not store.remove([old.id])
            elif told[-1] == "remove old":
                assert not store.remove([new.id])
            elif told[-1] == "remove new":
                return told

    @pytest.mark.usefixtures("state")
    def test_what_lies_between_two_looks(self) -> None:
        a, b = faked.add("a"), faked.add("b", running=False)
        up, gone, failed = Seen(a, "start"), Seen(b, "die"), Seen(b, "die")
        assert [event for event, _ in changes({}, {a.id: up})] == ["create", "start"]
        assert [event for event, _ in changes({}, {b.id: gone})] == ["create", "start", "die"]
        assert [event for event, _ in changes({a.id: up}, {})] == ["die", "remove"]
        assert changes({a.id: up, b.id: gone}, {a.id: up, b.id: gone}) == []
        b.status = Status.CREATING
        assert [event for event, _ in changes({b.id: Seen(b, "create")}, {b.id: failed})] == ["die"]


class TestCp:
    @pytest.mark.parametrize(
        ("text", "sandbox", "path"),
        [
            ("web:/tmp/x", "web", "/tmp/x"),
            ("web:x", "web", "x"),
            ("./a:b", None, "./a:b"),
            ("/a:b", None, "/a:b"),
            ("dir/a:b", None, "dir/a:b"),
            ("file", None, "file"),
            ("-", None, "-"),
        ],
    )
    def test_operands(self, text: str, sandbox: str | None, path: str) -> None:
        assert operand(text) == (sandbox, path)

    @pytest.mark.parametrize(
        ("argv", "word"),
        [
            (["a", "b"], "SANDBOX:PATH"),
            (["web:/a", "web:/b"], "two sandboxes"),
            (["web:", "b"], "is not a path"),
            (["", "web:/b"], "is not a path"),
            (["--max-size", "much", "web:/a", "b"], "size"),
            (["nobody:/a", "b"], "no sandbox"),
            (["/no/such", "web:/tmp"], "there is no"),
            (["web:/no/such", "."], "there is no"),
            (["web:/etc/passwd", "/no/such/x"], "no directory"),
            (["only-one"], "DST"),
        ],
    )
    def test_bad_input_gets_one_line(self, run: Run, argv: list[str], word: str) -> None:
        faked.add("web")
        refused(run("cp", *argv), word)

    def test_in_and_out(self, run: Run, tmp_path: Path) -> None:
        faked.add("web")
        (tmp_path / "here").write_text("content")
        assert run("cp", str(tmp_path / "here"), f"web:{tmp_path}/there") == (0, "", "")
        assert run("cp", f"web:{tmp_path}/there", str(tmp_path / "back")).code == 0
        assert (tmp_path / "back").read_text() == "content"
        refused(run("cp", "--max-size", "3", f"web:{tmp_path}/there", str(tmp_path / "not")), "--max-size")
        assert not (tmp_path / "not").exists()

    def test_sizes(self) -> None:
        assert [parse_size(text) for text in ("5", "2k", "3M", "1gb")] == [5, 2048, 3 * MIB, 1024 * MIB]


def complete(shell: str, *words: str) -> list[str]:
    """Complete the last word of a line by click's protocol, and return the candidates."""
    env = {**os.environ, "_SANDBOX_COMPLETE": f"{shell}_complete"}
    env |= {"COMP_WORDS": "\n".join(["sandbox", *words]), "COMP_CWORD": str(len(words))}
    if shell == "fish":
        env |= {"COMP_WORDS": " ".join(["sandbox", *words]), "COMP_CWORD": words[-1]}
    code = (
        "import sys; sys.argv = ['sandbox']; import sandbox.cli as c\n"
        "try: c._run()\nfinally:\n"
        " print([m for m in ('docker', 'libvirt', 'paramiko', 'pyroute2', 'asyncio', 'sandbox.lifecycle.find') "
        "if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]", f"completion imported {done.stderr}"
    return [line for line in done.stdout.splitlines() if line]


class TestCompletion:
    @pytest.fixture(autouse=True)
    def _sandboxes(self, state: Path) -> Record:
        assert not state.exists()
        faked.add("ended", running=False)
        faked.add("web-2")
        return faked.add("web-1")

    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            (["unp"], ["plain,unpause"]),
            (["stop", ""], ["plain,web-2", "plain,web-1"]),
            (["stop", "web-1", ""], ["plain,web-2"]),
            (["rm", "e"], ["plain,ended"]),
            (["logs", "en"], ["plain,ended"]),
            (["exec", "-i", "web-1"], ["plain,web-1"]),
            (["kill", "-s", "SIGU"], ["plain,SIGURG", "plain,SIGUSR1", "plain,SIGUSR2"]),
            (["kill", "--signal", "kil"], ["plain,KILL"]),
            (["run", "--isolation", "na"], ["plain,namespace"]),
            (["run", "reac"], ["plain,reactor"]),
            (["compare", "--isolation", "vm,pro"], ["plain,vm,process"]),
            (["inspect", "--fo"], ["plain,--format"]),
            (["inspect", "--format", ""], ["plain,json", "plain,table"]),
            (["completion", "z"], ["plain,zsh"]),
        ],
    )
    def test_bash_by_the_protocol(self, words: list[str], expected: list[str]) -> None:
        found = complete("bash", *words)
        assert sorted(found) == sorted(expected)

    def test_copying_offers_files_and_sandboxes(self) -> None:
        found = complete("bash", "cp", "")
        assert {"plain,web-1:", "plain,web-2:"} < set(found)
        assert any(line.startswith("file,") for line in found)

    def test_zsh_and_fish_by_the_protocol(self) -> None:
        assert "web-1" in complete("zsh", "stop", "")
        assert any(line.startswith("plain,web-1\t") for line in complete("fish", "stop", "web-"))

    def test_nothing_is_said_where_nothing_can_be_seen(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path / "file" / "below"))
        assert complete("bash", "stop", "") == []

    @pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
    def test_the_script_in_its_shell(self, run: Run, shell: str, tmp_path: Path) -> None:
        script = run("completion", shell).out
        assert "_SANDBOX_COMPLETE" in script
        if shutil.which(shell) is None:
            pytest.skip(f"{shell} is not installed")
        command = tmp_path / "sandbox"
        command.write_text(
            f'#!/bin/sh\nexec {sys.executable} -c \'import sys; sys.argv[0] = "sandbox"; '
            'import sandbox.cli as c; c.main()\' "$@"\n'
        )
        command.chmod(0o755)
        (tmp_path / "script").write_text(script)
        env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)}
        asked = {
            "bash": f'. {tmp_path}/script; COMP_WORDS=(sandbox stop w); COMP_CWORD=2; COMP_LINE="sandbox stop w"; '
            '_sandbox_completion sandbox; printf "%s\\n" "${COMPREPLY[@]}"',
            "zsh": f"autoload -U compinit; compinit -u; . {tmp_path}/script; "
            "compadd() { shift $#; print -l $completions; }; _describe() { print -l $completions_with_descriptions; }; "
            "words=(sandbox stop w); CURRENT=3; _sandbox_completion",
            "fish": f"source {tmp_path}/script; complete --do-complete 'sandbox stop w'",
        }[shell]
        done = subprocess.run([shell, "-c", asked], env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
        assert {line.replace("\t", ":").split(":")[0] for line in done.stdout.split("\n") if line} == {
            "web-1",
            "web-2",
        }, done

    def test_another_shell_is_refused(self, run: Run) -> None:
        refused(run("completion", "tcsh"), "bash")


def test_every_error_is_one_line(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(reference: str) -> None:
        raise SandboxError("first\nsecond\x1b[2J", "a\nhint")

    monkeypatch.setattr("sandbox.lifecycle.kill.get", fail)
    refused(run("kill", "web"), "first second?[2J (a hint)")
