"""What every level owes beside the plain life: attach, kill, pause, the log's tail, stats, what is in force."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from sandbox.errors import CannotInvokeError, CommandNotFoundError, EngineError, SpecError
from sandbox.isolation.base import Attached, WindowSize
from sandbox.spec import MIB, SANDBOX_UID, Mount, SandboxSpec
from tests.verbs import Manager, Running

PYTHON = ("/usr/bin/python3", "-I", "-S", "-c")
DISK = 8 * MIB
WITHOUT_MOUNTS = {"vm"}
"""Levels that share no files with the host, and say so."""


def plain(manager: Manager, level: str, *argv: str) -> SandboxSpec:
    """A sandbox that runs any command: no port is known, no reply is awaited."""
    return replace(manager.make_spec("reactor", level, memory="128m", pids_limit=64), argv=argv, port=None)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories of the host that a sandbox is given: `ro` to read, `rw` to write, and a lone file."""
    base = tmp_path_factory.mktemp("outside").resolve()
    for name in ("ro", "rw"):
        (base / name).mkdir()
        (base / name / "file").write_text(f"of the host: {name}\n")
        (base / name / "file").chmod(0o644)
    (base / "ro").chmod(0o777)  # so that nothing but the mount itself keeps it from being written
    (base / "ro" / "file").chmod(0o666)
    (base / "rw").chmod(0o777)
    (base / "lone").write_text("a lone file\n")
    return base


@pytest.fixture(scope="module")
def shared(level: str, manager: Manager, outside: Path, nothing_left_of_the_shared_one: None) -> Iterator[Running]:
    """A server with everything that can be asked for; shared by tests that leave it as they found it."""
    spec = replace(manager.make_spec("reactor", level, memory="128m", pids_limit=64), disk=DISK, workdir="/usr/bin")
    if level not in WITHOUT_MOUNTS:
        mounts = (
            Mount(str(outside / "ro"), "/data/ro", read_only=True),
            Mount(str(outside / "rw"), "/mnt"),
            Mount(str(outside / "lone"), "/etc/lone", read_only=True),
            Mount(str(outside / "ro"), "/tmp/below", read_only=True),
        )
        spec = replace(spec, mounts=mounts)
    with manager.running(spec) as found:
        yield found


class Session:
    """A command attached by pipes of ours, and what it has written so far."""

    def __init__(self, attached: Attached, stdin: int, outputs: dict[str, int]) -> None:
        self.attached = attached
        self.stdin = stdin
        self.text = dict.fromkeys(outputs, b"")
        self._threads = [threading.Thread(target=self._read, args=item, daemon=True) for item in outputs.items()]
        for thread in self._threads:
            thread.start()

    def _read(self, name: str, descriptor: int) -> None:
        while chunk := os.read(descriptor, 65536):
            self.text[name] += chunk

    def type(self, data: bytes) -> None:
        os.write(self.stdin, data)

    def until(self, wanted: bytes, name: str = "out", timeout: float = 60) -> bytes:
        deadline = time.monotonic() + timeout
        while wanted not in self.text[name] and time.monotonic() < deadline:
            time.sleep(0.02)
        assert wanted in self.text[name]
        return self.text[name]

    def end_input(self) -> None:
        if self.stdin >= 0:
            os.close(self.stdin)
            self.stdin = -1

    def wait(self) -> int:
        """The exit code, from a thread of its own, so that a test never hangs."""
        found: list[int] = []
        thread = threading.Thread(target=lambda: found.append(self.attached.wait()), daemon=True)
        thread.start()
        thread.join(60)
        assert found, "the command did not end"
        return found[0]

    def finished(self) -> None:
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()


@contextmanager
def attached(running: Running, argv: list[str], **options: object) -> Iterator[Session]:
    """A command with pipes; their far ends are closed once it is over, so that its readers end."""
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    handle = running.sandbox.attach(argv, stdin=in_read, stdout=out_write, stderr=err_write, **options)  # type: ignore[arg-type]
    session = Session(handle, in_write, {"out": out_read, "err": err_read})
    try:
        yield session
    finally:
        handle.close()
        handle.close()  # idempotent
        session.end_input()
        for descriptor in (out_write, err_write):
            os.close(descriptor)
        session.finished()
        for descriptor in (in_read, out_read, err_read):
            os.close(descriptor)


def processes_with(running: Running, word: str) -> int:
    """How many commands inside have a word in their arguments, beside the one that looks."""
    script = (
        "import glob,os,sys\nn=0\nfor p in glob.glob('/proc/[0-9]*/cmdline'):\n"
        " try: d=open(p,'rb').read()\n except OSError: continue\n"
        " n+=sys.argv[1][::-1].encode() in d and b'glob' not in d\nprint(n)"
    )
    return int(running.sandbox.exec([*PYTHON, script, word[::-1]], timeout=60).stdout)


def comes_true(condition: Callable[[], bool], timeout: float = 20) -> bool:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_attach_passes_input_output_and_the_exit_code(shared: Running) -> None:
    script = "import sys,os\nsys.stderr.write('to stderr')\nsys.stdout.write(sys.stdin.read().upper())\nsys.exit(42)"
    with attached(shared, [*PYTHON, script]) as session:
        session.type(b"some input")
        session.end_input()
        assert session.wait() == 42
        assert (session.until(b"SOME INPUT"), session.until(b"to stderr", "err")) == (b"SOME INPUT", b"to stderr")


def test_attach_passes_much_output_whole(shared: Running) -> None:
    script = "import sys\nfor i in range(200000): sys.stdout.write('%09d\\n' % i)"
    with attached(shared, [*PYTHON, script]) as session:
        assert session.wait() == 0
        session.until(b"000199999\n")
        assert session.text["out"] == b"".join(b"%09d\n" % number for number in range(200000))


def test_attach_passes_output_as_it_comes(shared: Running) -> None:
    with attached(shared, ["cat"]) as session:
        for word in (b"first\n", b"second\n"):
            session.type(word)
            session.until(word, timeout=30)
        session.end_input()
        assert session.wait() == 0


def test_attach_with_environment_directory_and_user(shared: Running) -> None:
    script = "import os,json;print(json.dumps([os.environ['GREETING'],os.getcwd(),os.getuid()]))"
    with attached(shared, [*PYTHON, script], env=[("GREETING", "a 'b' $c")], workdir="/tmp", root=True) as session:
        assert session.wait() == 0
        assert json.loads(session.until(b"]")) == ["a 'b' $c", "/tmp", 0]


def test_attach_ends_though_a_child_keeps_the_output(shared: Running) -> None:
    began = time.monotonic()
    with attached(shared, ["/bin/sh", "-c", "echo said; sleep 8642 & exit 3"]) as session:
        assert session.wait() == 3
        session.until(b"said\n")
    assert time.monotonic() - began < 50
    script = (
        "import glob,os\nfor p in glob.glob('/proc/[0-9]*/cmdline'):\n"
        " try:\n  if open(p,'rb').read()==b'sleep\\x008642\\x00': os.kill(int(p.split('/')[2]),9)\n"
        " except OSError: print('gone')"
    )
    shared.sandbox.exec([*PYTHON, script], timeout=60)


def test_attach_of_nothing_there_is_127_and_of_a_directory_126(shared: Running) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    try:
        for argv, error in ((["/no/such/command"], CommandNotFoundError), (["/usr"], CannotInvokeError)):
            with pytest.raises(error):
                shared.sandbox.attach(argv, stdin=None, stdout=null, stderr=null)
    finally:
        os.close(null)


def test_close_ends_the_command(shared: Running) -> None:
    with attached(shared, ["sleep", "86421"]) as session:
        assert comes_true(lambda: processes_with(shared, "86421") == 1)
        session.attached.close()
    assert comes_true(lambda: processes_with(shared, "86421") == 0)


def test_a_terminal_is_one_inside(shared: Running, level: str) -> None:
    script = (
        "import os,sys,fcntl,termios,struct\n"
        "rows,cols=struct.unpack('HHHH',fcntl.ioctl(0,termios.TIOCGWINSZ,bytes(8)))[:2]\n"
        "print([os.isatty(n) for n in (0,1,2)],rows,cols,os.tcgetpgrp(0)==os.getpgrp(),'TERM' in os.environ)"
    )
    named = "\nprint(os.ttyname(0).startswith('/dev/pts/'),os.close(os.open('/dev/tty',os.O_RDWR)))"
    # gVisor's kernel passes a terminal in from outside, where it has a name; inside there is none.
    script, said = (script, b"") if level == "gvisor" else (script + named, b"\r\nTrue None")
    with attached(shared, [*PYTHON, script], terminal=WindowSize(33, 111)) as session:
        assert session.wait() == 0
    assert session.text["out"].strip() == b"[True, True, True] 33 111 True True" + said


def test_a_terminal_is_resized(shared: Running) -> None:
    script = (
        "import os,signal,time\n"
        "signal.signal(signal.SIGWINCH,lambda *_: os.write(1,b'now %d %d' % os.get_terminal_size()))\n"
        "os.write(1,b'ready')\nwhile True: time.sleep(0.1)"
    )
    with attached(shared, [*PYTHON, script], terminal=WindowSize(24, 80)) as session:
        session.until(b"ready")
        session.attached.resize(WindowSize(50, 132))
        session.until(b"now 132 50")


def test_a_typed_interrupt_reaches_the_command(shared: Running) -> None:
    script = (
        "import sys,time\ntry: print('ready',flush=True); time.sleep(60)\n"
        "except KeyboardInterrupt: print('interrupted',flush=True); sys.exit(5)"
    )
    with attached(shared, [*PYTHON, script], terminal=WindowSize(24, 80)) as session:
        session.until(b"ready")
        session.type(b"\x03")
        session.until(b"interrupted")
        assert session.wait() == 5


def test_a_signal_that_ends_an_attached_command_is_its_code(shared: Running) -> None:
    with attached(shared, [*PYTHON, "import os,signal;os.kill(os.getpid(),signal.SIGTERM)"]) as session:
        assert session.wait() == 128 + signal.SIGTERM


def test_the_working_directory_is_the_specs(shared: Running) -> None:
    result = shared.sandbox.exec([*PYTHON, "import os;print(os.getcwd())"], timeout=60)
    assert result.stdout.strip() == b"/usr/bin"
    if shared.record.spec.isolation == "gvisor":
        return  # nobody may look at another's /proc/pid/cwd there; the same setting of the engine's serves both
    # By all of its arguments: at the level `process` those of other sandboxes are in sight, too.
    script = (
        "import glob,os,sys\nfor p in glob.glob('/proc/[0-9]*'):\n"
        " try: d=open(p+'/cmdline','rb').read()\n except OSError: continue\n"
        " if d=='\\0'.join([*sys.argv[1:],'']).encode(): print(os.readlink(p+'/cwd')); break"
    )
    result = shared.sandbox.exec([*PYTHON, script, *shared.record.spec.argv], timeout=60)
    assert result.stdout.strip() == b"/usr/bin", result.stderr


def test_the_disk_limit_holds(shared: Running) -> None:
    script = (
        "import os,sys\nn=0\nf=os.open('/tmp/fill',os.O_CREAT|os.O_WRONLY)\n"
        f"try:\n while n<{2 * DISK}: n+=os.write(f,bytes(65536))\nexcept OSError as e: print(e.errno,n)\n"
        "else: print('none',n)\nfinally: os.unlink('/tmp/fill')"
    )
    number, written = shared.sandbox.exec([*PYTHON, script], timeout=60).stdout.split()
    assert int(number) == 28  # ENOSPC
    assert 0.75 * DISK < int(written) <= DISK
    disk = shared.sandbox.limits().disk
    assert disk is not None
    assert disk == pytest.approx(DISK, abs=4096)


def test_mounts_are_seen(shared: Running, outside: Path, level: str) -> None:
    if level in WITHOUT_MOUNTS:
        assert not shared.record.spec.mounts
        return
    script = "import sys;print([open(p).read() for p in sys.argv[1:]])"
    files = ["/data/ro/file", "/mnt/file", "/etc/lone", "/tmp/below/file"]
    result = shared.sandbox.exec([*PYTHON, script, *files], timeout=60)
    said = ["of the host: ro\n", "of the host: rw\n", "a lone file\n", "of the host: ro\n"]
    assert result.stdout.decode().strip() == str(said), result.stderr
    # What lies beside a mount's target is still there.
    assert b"root" in shared.sandbox.exec(["cat", "/etc/passwd"], timeout=60).stdout


def test_mounts_are_written_only_where_they_may_be(shared: Running, outside: Path, level: str) -> None:
    if level in WITHOUT_MOUNTS:
        assert not shared.record.spec.mounts
        return
    script = (
        "import os\nfor p in ('/data/ro/new','/data/ro/file','/etc/lone','/tmp/below/new','/mnt/new','/data/new'):\n"
        " try: os.close(os.open(p,os.O_CREAT|os.O_WRONLY)); print('w',end='')\n except OSError: print('-',end='')"
    )
    assert shared.sandbox.exec([*PYTHON, script], timeout=60).stdout == b"----w-"
    # One number for the same user inside and on disk, whatever the level maps it to on the way.
    assert (outside / "rw" / "new").stat().st_uid == SANDBOX_UID
    assert not (outside / "ro" / "new").exists()
    (outside / "rw" / "new").unlink()


def test_a_mount_through_a_symbolic_link_is_refused(level: str, manager: Manager, outside: Path) -> None:
    """Also where the driver is asked directly, after the check of what a user typed."""
    link = outside / f"link-{level}"
    link.symlink_to(outside / "ro")
    spec = replace(manager.make_spec("reactor", level), mounts=(Mount(str(link), "/mnt", read_only=True),))
    with pytest.raises((SpecError, EngineError)):
        manager.run(spec)


def test_stats_of_what_can_be_observed(shared: Running) -> None:
    with urllib.request.urlopen(str(shared.url), timeout=10) as reply:
        reply.read()
    before = shared.sandbox.stats()
    for _ in range(50):
        with urllib.request.urlopen(str(shared.url), timeout=10) as reply:
            reply.read()
    after = shared.sandbox.stats()
    for name in ("received", "sent"):
        first, second = getattr(before, name), getattr(after, name)
        assert (first is None) == (second is None)
        if first is not None:
            assert second - first > 50 * 50, name
    for name in ("read", "written"):
        assert getattr(after, name) is None or getattr(after, name) >= (getattr(before, name) or 0)
    if shared.record.spec.isolation != "process":
        assert after.received is not None


def test_what_is_in_force_is_said(shared: Running) -> None:
    found = shared.sandbox.inspection()
    assert found.limits.cpus == pytest.approx(1.0, abs=0.001)
    assert found.limits.memory == 128 * MIB
    assert found.limits.pids == 64
    assert found.limits.disk == pytest.approx(DISK, abs=4096)
    assert found.network.address == shared.record.address
    assert found.user.uid == SANDBOX_UID


def test_paused_and_unpaused(shared: Running) -> None:
    sandbox = shared.sandbox
    assert not sandbox.state().paused
    sandbox.pause()
    sandbox.pause()
    try:
        state = sandbox.state()
        assert state.running
        assert state.paused
        with pytest.raises(OSError, match="timed out"), urllib.request.urlopen(str(shared.url), timeout=1.5) as reply:
            reply.read()
    finally:
        sandbox.unpause()
    sandbox.unpause()
    assert not sandbox.state().paused
    with urllib.request.urlopen(str(shared.url), timeout=20) as reply:
        assert reply.status == 200


def test_a_paused_one_is_stopped(level: str, manager: Manager) -> None:
    with manager.running(plain(manager, level, "sleep", "86400")) as running:
        running.sandbox.pause()
        began = time.monotonic()
        running.sandbox.stop(15.0)
        assert time.monotonic() - began < 14, "SIGTERM did not reach a paused workload"
        assert not running.sandbox.state().running


def test_signals_the_log_and_the_exit_code(level: str, manager: Manager) -> None:
    """One sandbox whose workload counts, notes a signal, and ends by another with a code of its own."""
    script = "for n in $(seq 1 3000); do echo line $n; done; trap 'echo noted' USR1; trap 'echo over; exit 9' USR2; "
    script += "while :; do sleep 0.05; done"
    with manager.running(plain(manager, level, "/bin/sh", "-c", script)) as running:
        sandbox = running.sandbox
        assert running.url is None
        assert comes_true(lambda: b"line 3000\n" in log(running))
        # The log may hold carriage returns where it comes from a console.
        tail = [line.strip() for line in b"".join(sandbox.logs(tail=2)).splitlines()]
        assert tail == [b"line 2999", b"line 3000"]
        assert b"".join(sandbox.logs(tail=0)) == b""
        assert len(b"".join(sandbox.logs(tail=100000)).splitlines()) >= 3000
        sandbox.kill(signal.SIGUSR1)
        assert comes_true(lambda: b"noted\n" in log(running))
        assert sandbox.state().running
        sandbox.kill(signal.SIGUSR2)
        assert sandbox.wait(30) == 9
        assert sandbox.state().exit_code == 9
        assert b"".join(sandbox.logs(tail=1)).strip() == b"over"
        with pytest.raises(EngineError):
            sandbox.kill(signal.SIGTERM)
        with pytest.raises(EngineError):
            sandbox.pause()
        found = sandbox.inspection()  # what can still be read of one that has ended
        assert found.ended is not None
        assert (found.ended.code, found.ended.reason, found.oom_killed) == (9, "exited", False)


def test_kill_9_ends_a_paused_one_at_once(level: str, manager: Manager) -> None:
    with manager.running(plain(manager, level, "/bin/sh", "-c", "trap '' TERM; sleep 86400")) as running:
        running.sandbox.pause()
        running.sandbox.kill(signal.SIGKILL)
        code = running.sandbox.wait(20)
        assert not running.sandbox.state().running
        assert code in (128 + signal.SIGKILL, None)


def test_one_that_starts_commands_without_end_can_be_paused(level: str, manager: Manager) -> None:
    """At any moment of fork(2), vfork(2) and exec: on cgroup v1 a freezer that is asked once hangs in one of them."""
    with manager.running(plain(manager, level, "/bin/sh", "-c", "while :; do /bin/true; done")) as running:
        for number in range(300 if level in ("process", "namespace") else 10):
            running.sandbox.pause()
            # gVisor's state is dockerd's word, which an event of the end of the pause before turns back for a moment.
            assert running.sandbox.state().paused or (level == "gvisor" and comes_true(lambda: is_paused(running), 2.0))
            running.sandbox.unpause()
            time.sleep(number % 7 * 0.0007)
        assert running.sandbox.state().running


def test_a_command_may_be_over_at_any_moment_of_its_start(level: str, manager: Manager, outside: Path) -> None:
    """What is looked at after a start, limits and mounts, may be gone by then; its output and its code are not."""
    step, count = {"vm": (0.4, 2), "gvisor": (0.05, 12)}.get(level, (0.02, 12))
    for delay in (step * number for number in range(count)):
        spec = plain(manager, level, "/bin/sh", "-c", f"sleep {delay:.2f}; echo done; exit 3")
        if level not in WITHOUT_MOUNTS:
            spec = replace(spec, mounts=(Mount(str(outside / "ro"), "/data/ro", read_only=True),))
        with manager.running(spec) as found:
            assert found.sandbox.wait(30.0) == 3, delay
            assert b"".join(found.sandbox.logs()) == b"done\n", delay


def is_paused(running: Running) -> bool:
    return running.sandbox.state().paused


def test_since_is_honoured_or_refused(shared: Running) -> None:
    try:
        text = b"".join(shared.sandbox.logs(since=time.time() + 3600))
    except SpecError as error:
        refused = error.message
    else:
        refused = ""
        assert text == b""
        assert b"".join(shared.sandbox.logs(since=shared.record.created - 3600)) == b"".join(shared.sandbox.logs())
    assert not refused or "since" in refused


def log(running: Running) -> bytes:
    return b"".join(running.sandbox.logs()).replace(b"\r\n", b"\n")
