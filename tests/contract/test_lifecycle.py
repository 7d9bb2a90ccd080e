"""What every level owes: run, serve, exec, logs, limits, stop, destroy; the same assertions over all of them."""

from __future__ import annotations

import json
import time
import urllib.request

import pytest

from sandbox.errors import CommandNotFoundError, EngineError, NameTakenError
from sandbox.phases import ORDER
from sandbox.spec import MIB, SANDBOX_UID
from tests.verbs import Manager, Running

PYTHON = ("/usr/bin/python3", "-I", "-S", "-c")


def get(url: str | None) -> tuple[int, bytes]:
    assert url is not None
    with urllib.request.urlopen(url, timeout=10) as reply:
        return reply.status, reply.read()


def test_serves_the_host_and_the_same_reply_everywhere(running: Running) -> None:
    status, body = get(running.url)
    assert status == 200
    assert body.strip() == b"hello"
    assert get(f"{running.url}healthz")[0] == 200


def test_every_phase_was_timed(running: Running) -> None:
    durations = running.record.timeline.durations()
    assert list(durations) == [phase.value for phase in ORDER]
    assert running.record.timeline.complete
    if running.record.spec.isolation != "vm":
        assert durations["boot"] < 0.01  # the kernel is shared: nothing boots
    assert running.record.timeline.total() >= sum(durations.values()) * 0.99


def test_limits_are_read_back(running: Running) -> None:
    limits = running.sandbox.limits()
    assert limits.cpus == pytest.approx(1.0, abs=0.001)
    assert limits.memory == 128 * MIB
    assert limits.pids == 64
    assert limits.source


def test_exec_runs_inside_as_the_sandbox_user(running: Running) -> None:
    script = "import os,json;print(json.dumps([os.getuid(),os.getcwd(),os.path.exists('/opt/sandbox/workloads')]))"
    result = running.sandbox.exec([*PYTHON, script], timeout=60)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout) == [SANDBOX_UID, "/", True]


def test_exec_as_root_and_separate_streams_and_codes(running: Running) -> None:
    script = "import os,sys;print(os.getuid());print('err',file=sys.stderr);sys.exit(7)"
    result = running.sandbox.exec([*PYTHON, script], root=True, timeout=60)
    assert (result.exit_code, result.stdout.strip(), result.stderr.strip()) == (7, b"0", b"err")


def test_exec_passes_arguments_unchanged(running: Running) -> None:
    nasty = ["a b", "$HOME", "'", '"', ";", "*", "\\", "", "ä\n"]
    script = "import sys,json;print(json.dumps(sys.argv[1:]))"
    result = running.sandbox.exec([*PYTHON, script, *nasty], timeout=60)
    assert json.loads(result.stdout) == nasty


def test_exec_of_nothing_there_is_127(running: Running) -> None:
    with pytest.raises(CommandNotFoundError) as caught:
        running.sandbox.exec(["/no/such/command"], timeout=60)
    assert caught.value.exit_code == 127


def test_exec_timeout_ends_the_command(running: Running) -> None:
    with pytest.raises(TimeoutError):
        running.sandbox.exec(["sleep", "86399"], timeout=1.0)
    script = (
        "import glob\nn=0\nfor p in glob.glob('/proc/[0-9]*/cmdline'):\n"
        " try: d=open(p,'rb').read()\n except OSError: continue\n"
        " n+=b'86399' in d and b'glob' not in d\nprint(n)"
    )
    deadline = time.monotonic() + 10
    while True:
        left = int(running.sandbox.exec([*PYTHON, script], timeout=60).stdout)
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.2)
    assert left == 0


def test_the_root_is_read_only_and_tmp_is_not(running: Running) -> None:
    script = (
        "import os\nfor p in ('/x','/etc/x','/opt/sandbox/x','/tmp/x','/run/x','/var/tmp/x'):\n"
        " try: os.close(os.open(p,os.O_CREAT|os.O_WRONLY)); print('w',end='')\n except OSError: print('-',end='')"
    )
    result = running.sandbox.exec([*PYTHON, script], timeout=60)
    assert result.stdout == b"---w-w"


def test_environment_is_clean(running: Running) -> None:
    result = running.sandbox.exec([*PYTHON, "import os,json;print(json.dumps(dict(os.environ)))"], timeout=60)
    seen = json.loads(result.stdout)
    assert {"PATH", "HOME", "LANG"} <= set(seen)
    assert set(seen) <= {"PATH", "HOME", "LANG", "LC_CTYPE", "PWD", "SHLVL", "USER", "LOGNAME", "HOSTNAME", "SHELL"}


def test_environment_entries_arrive(level: str, manager: Manager) -> None:
    spec = manager.make_spec("reactor", level, env=["GREETING=a 'quoted' $value"])
    with manager.running(spec) as running:
        script = (
            "import json,glob\nfor p in glob.glob('/proc/[0-9]*/environ'):\n"
            " try: d=open(p,'rb').read()\n except OSError: continue\n"
            " if b'GREETING=' in d and b'/opt/sandbox' in open(p.replace('environ','cmdline'),'rb').read():\n"
            "  print(d.split(b'GREETING=')[1].split(b'\\0')[0].decode()); break"
        )
        assert running.sandbox.exec([*PYTHON, script], timeout=60).stdout.strip() == b"a 'quoted' $value"


def test_stats_count_something(running: Running) -> None:
    get(running.url)
    stats = running.sandbox.stats()
    assert stats.memory is None or stats.memory > MIB
    assert stats.cpu_seconds is None or stats.cpu_seconds > 0
    assert stats.pids is None or stats.pids >= 2


def test_found_again_by_another_manager(running: Running) -> None:
    again = Manager().get(running.record.name)
    assert again.record.id == running.record.id
    assert again.sandbox.state().running
    assert again.url == running.url
    assert again.sandbox.exec([*PYTHON, "print(1)"], timeout=60).stdout.strip() == b"1"
    assert Manager().get(running.record.id[:6]).record.id == running.record.id


def test_the_name_is_taken(running: Running, manager: Manager, level: str) -> None:
    with pytest.raises(NameTakenError):
        manager.run(manager.make_spec("reactor", level, name=running.record.name))
    assert get(running.url)[0] == 200


def test_stop_ends_it_and_keeps_the_log(level: str, manager: Manager) -> None:
    running = manager.run(manager.make_spec("reactor", level))
    try:
        assert running.sandbox.state().running
        began = time.monotonic()
        code = manager.stop(running.record.name, 20.0)
        assert time.monotonic() - began < 19, "SIGTERM did not reach the workload"
        assert code in (0, None)
        assert not running.sandbox.state().running
        b"".join(running.sandbox.logs())
        with pytest.raises(EngineError):
            running.sandbox.exec(["true"], timeout=30)
    finally:
        manager.remove(running.record.name, force=True)


def test_destroy_twice_is_fine(level: str, manager: Manager) -> None:
    running = manager.run(manager.make_spec("reactor", level))
    manager.destroy(running)
    running.sandbox.remove()


def test_logs_show_what_it_wrote(level: str, manager: Manager) -> None:
    running = manager.run(manager.make_spec("reactor", level))
    try:
        deadline = time.monotonic() + 10
        while not (text := b"".join(running.sandbox.logs())) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert b"8080" in text
    finally:
        manager.destroy(running)
