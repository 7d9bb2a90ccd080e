"""Test the reader of the settings in force, with made-up files and with the test's own process."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import asdict, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jsonschema
import pytest

from sandbox.cli.facts import Fact
from sandbox.cli.inspect import Document, Now, Resources
from sandbox.errors import EngineError
from sandbox.isolation import in_force, inspection
from sandbox.isolation.in_force import Ended, Inspection, LimitsInForce, Namespace, Owner
from sandbox.spec import SandboxSpec
from sandbox.state import codec
from sandbox.state.record import Exit, Record

ROOT = Path(__file__).resolve().parents[3]
SCHEMA: dict[str, Any] = json.loads((ROOT / "docs/inspect.schema.json").read_text(encoding="utf-8"))
NOTHING = (None, None)


def look(view: inspection.View, carrier: int | None = None) -> Inspection:
    network = inspection.network_of(view, "198.18.2.1", own=None)
    return inspection.inspection(view, carrier, LimitsInForce(), network, NOTHING)


def answered(**files: str) -> inspection.View:
    """A view of process 5 of a kernel inside that shows these files of it; those of the kernel itself have a dot."""
    paths = {name: f"/proc/{name[1:]}" if name.startswith(".") else f"/proc/5/{name}" for name in files}
    lines = [f"{paths[name]}:{line}" for name, text in files.items() for line in text.splitlines()]
    return inspection.inside("\n".join(["pid:5", *lines, ""]))


def test_what_nobody_said_is_none() -> None:
    for answer in (None, "", "nonsense", "pid:\n", "pid:5\n"):
        found = look(inspection.inside(answer)).to_json()
        assert codec.decode(Inspection, json.loads(json.dumps(found)), "effective")
        leaves = {name: value for name, value in flat(found) if value is not None}
        assert leaves == {"kernel.shared": False}


def flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    if not isinstance(value, dict):
        return [(name, value)]
    return [one for key, inner in value.items() for one in flat(inner, f"{name}.{key}".lstrip("."))]


def test_this_process() -> None:
    found = look(inspection.host_view(os.getpid()), os.getpid())
    assert found.kernel.shared
    assert found.kernel.release == os.uname().release
    assert found.user.uid == os.geteuid()
    assert found.process is not None
    assert Path(found.process.program or "").name.startswith("python")
    assert found.process.user == found.user
    assert found.process.descriptors is not None
    assert "0 " in found.process.descriptors[0]
    assert found.namespaces.net == Namespace(os.stat("/proc/self/ns/net").st_ino, Owner.HOST)
    assert found.network.address not in (None, "198.18.2.1", "127.0.0.1")
    assert found.network.interfaces is not None
    assert "lo" in found.network.interfaces
    assert codec.decode(Inspection, json.loads(json.dumps(found.to_json())), "effective") == found


def test_a_process_that_is_gone() -> None:
    found = look(inspection.host_view(2**22 + 1), 2**22 + 1)
    assert found.process is None
    assert found.user.uid is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: only root makes namespaces")
def test_namespaces_of_its_own() -> None:
    with subprocess.Popen(["unshare", "--net", "--uts", "sh", "-c", "echo up; cat"], stdin=-1, stdout=-1) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdout.readline()
        found = look(inspection.host_view(child.pid))
        own = inspection.own_network(child.pid)
        child.stdin.close()
    owners = {kind.name: getattr(found.namespaces, kind.name).owner for kind in fields(found.namespaces)}
    assert {kind for kind, owner in owners.items() if owner is Owner.SANDBOX} == {"net", "uts"}
    assert set(owners.values()) == {Owner.SANDBOX, Owner.HOST}
    assert own is True
    assert inspection.own_network(os.getpid()) is False
    assert inspection.own_network(None) is None


def test_ids_are_those_of_the_inside() -> None:
    rows = [[0, 1000, 10], [100, 5000, 1]]
    assert [inspection.inside_id(number, rows) for number in (1000, 1009, 1010, 5000)] == [0, 9, None, 100]
    assert inspection.inside_id(7, None) is None
    found = look(answered(status="Uid:\t0\t1009\t0\t0\nGid:\t1\t1000\t1\t1\nGroups:\t1001 7 \n", uid_map="0 1000 10\n"))
    assert (found.user.uid, found.user.gid, found.user.groups) == (9, 1000, [1001, 7])
    assert found.user.uid_map == [[0, 1000, 10]]


def test_the_words_for_what_a_process_may() -> None:
    found = look(answered(status="CapEff:\t0000000000200001\nSeccomp:\t2\nSeccomp_filters:\t3\nNoNewPrivs:\t1\n"))
    assert found.capabilities.effective == ["CAP_CHOWN", "CAP_SYS_ADMIN"]
    assert found.capabilities.permitted is None
    assert (found.seccomp.mode, found.seccomp.filters, found.user.no_new_privileges) == ("filter", 3, True)
    modes = [look(answered(status=f"Seccomp:\t{number}\n")).seccomp.mode for number in (0, 1, 2, 3, -1)]
    assert modes == ["disabled", "strict", "filter", None, None]


def test_the_root_that_is_seen_is_the_last_one() -> None:
    table = "1 0 0:1 / / rw - ext4 a rw\n2 1 0:2 / / ro - overlay b rw\n3 2 0:3 / /proc/keys ro - devtmpfs c rw\n"
    found = look(answered(mountinfo=table + "4 2 0:4 / /proc/sys ro - proc p rw\n5 2 0:4 / /proc/bus rw - proc p rw\n"))
    assert found.root is not None
    assert (found.root.read_only, found.root.type) == (True, "overlay")
    assert found.masked_paths == ["/proc/keys"]
    assert found.read_only_paths == ["/proc/sys"]
    assert look(answered(mountinfo="")).root is None


def test_the_kernel_inside() -> None:
    found = look(
        answered(
            **{
                ".version": "Linux version 4.4.0 #1 SMP\n",
                ".cmdline": "quiet\n",
                ".cpuinfo": "processor\t: 0\nmodel name: x\n\nprocessor\t: 1\n",
                ".meminfo": "MemTotal:         223624 kB\nSwapTotal: 0 kB\n",
            }
        )
    ).kernel
    assert (found.shared, found.release, found.command_line, found.processors) == (False, "4.4.0", "quiet", 2)
    assert (found.memory, found.swap) == (223624 * 1024, 0)


def test_namespaces_of_a_kernel_inside() -> None:
    links = "pid:5\n/proc/5/ns/mnt:mnt:[1]\n/proc/5/ns/net:net:[2]\n/proc/5/ns/time:time:[7]\n"
    links += "/proc/1/ns/mnt:mnt:[1]\n/proc/1/ns/net:net:[3]\n/proc/1/ns/time:time:[7]\n"
    found = look(inspection.inside(links)).namespaces
    assert (found.mnt, found.net) == (Namespace(1, Owner.GUEST), Namespace(2, Owner.SANDBOX))
    assert found.time == Namespace(7, Owner.GUEST)
    assert found.pid == Namespace(None, None)


def test_limits() -> None:
    text = "Limit  Soft Limit  Hard Limit  Units\nMax file size             {}            unlimited bytes\n"
    views = [answered(limits=text.format(size)) for size in (4096, "unlimited")]
    assert [inspection.limits_in_force(None, view).file_size for view in views] == [4096, in_force.UNLIMITED]
    found = inspection.limits_in_force(None, inspection.inside(None), swap=0)
    assert (found.swap, found.file_size, found.cpus, found.source) == (0, None, None, None)


@pytest.mark.parametrize(
    "files",
    [
        {"status": "Uid:\tx\n"},
        {"status": "Uid:\n"},
        {"status": "CapEff:\tzz\n"},
        {"uid_map": "0 a 1\n"},
        {"limits": "Max file size\n"},
        {"net/route": "head\neth0\n"},
        {"net/dev": "eth0: 1\n"},
    ],
)
def test_what_a_hostile_kernel_says_is_an_error_of_one_line(files: dict[str, str]) -> None:
    @inspection.readable()
    def act() -> None:
        inspection.limits_in_force(None, answered(**files))
        look(answered(**files))

    with pytest.raises(EngineError, match="cannot be read"):
        act()


def test_the_question_is_one_that_a_shell_answers() -> None:
    script = inspection.question("$$", "/proc/vmstat")
    done = subprocess.run(["/bin/sh", "-c", script], capture_output=True, check=True)
    assert done.stderr == b""
    asked, direct = inspection.inside(done.stdout.decode()), inspection.host_view(os.getpid())
    assert asked.pid is not None
    assert "oom_kill" in (asked.read("/proc/vmstat") or "")
    through, ours = look(asked), look(direct)
    assert replace(through.kernel, shared=True) == ours.kernel
    assert (through.user, through.seccomp, through.capabilities) == (ours.user, ours.seccomp, ours.capabilities)
    assert (through.mounts, through.root, through.network.routes) == (ours.mounts, ours.root, ours.network.routes)
    assert through.namespaces.net.id == ours.namespaces.net.id


# How it ended


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Record:
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path))
    found = Record("0123456789ab", SandboxSpec("web", "sleep", "namespace", ("sleep",)), "198.18.2.1")
    found.directory.mkdir(parents=True)
    return found


@pytest.mark.parametrize(
    ("code", "oom_killed", "reason"),
    [
        (0, False, "exited"),
        (3, None, "exited"),
        (143, False, "killed by SIGTERM"),
        (137, False, "killed by SIGKILL"),
        (137, True, "out of memory"),
        (0, True, "exited"),
        (255, False, "exited"),
        (None, None, None),
    ],
)
def test_reasons(record: Record, code: int | None, oom_killed: bool | None, reason: str | None) -> None:
    found = inspection.outcome(record, ended=True, code=code, oom_killed=oom_killed, time=0.5)
    assert found == (oom_killed, Ended("1970-01-01T00:00:00.500+00:00", code, reason))
    assert inspection.outcome(record, ended=False, code=code, oom_killed=oom_killed) == (oom_killed, None)


def test_what_was_written_at_the_end(record: Record) -> None:
    said = {"time": 1.25, "code": 137, "oom_killed": True, "reason": "killed by a signal"}
    time = "1970-01-01T00:00:01.250+00:00"
    (record.directory / "exit").write_text(json.dumps(said))
    for oom_killed in (None, False):
        found = inspection.outcome(record, ended=True, code=None, oom_killed=oom_killed, time=9.0)
        assert found == (True, Ended(time, 137, "out of memory"))
    (record.directory / "exit").write_text(json.dumps(said | {"code": None, "oom_killed": None}))
    found = inspection.outcome(record, ended=True, code=3, oom_killed=None)
    assert found == (None, Ended(time, 3, "exited")), "only the engine knows the code"
    found = inspection.outcome(record, ended=True, code=None, oom_killed=None)
    assert found == (None, Ended(time, None, "killed by a signal"))


def test_what_a_command_noted(record: Record) -> None:
    record.exit = Exit(3, 2.0, oom_killed=False)
    found = inspection.outcome(record, ended=True, code=None, oom_killed=None)
    assert found == (False, Ended("1970-01-01T00:00:02.000+00:00", 3, "exited"))


@pytest.mark.parametrize("text", ["", "{", '{"code": "x"}', '{"time": 1e999}', "[]", '{"code": 1, "more": 2}'])
def test_a_file_that_is_none_of_ours_is_passed_over(record: Record, text: str) -> None:
    (record.directory / "exit").write_text(text)
    oom_killed, ended = inspection.outcome(record, ended=True, code=3, oom_killed=False, time=1.0)
    assert (oom_killed, ended) == (False, Ended("1970-01-01T00:00:01.000+00:00", 3, "exited"))


# The schema


def parts(kind: Any) -> list[Any]:
    """A dataclass and all that it is made of."""
    found = [kind]
    for hint in get_type_hints(kind, localns={"Fact": Fact, "Inspection": Inspection}).values():
        for one in (hint, *get_args(hint), *(inner for arg in get_args(hint) for inner in get_args(arg))):
            if isinstance(one, type) and is_dataclass(one) and one not in found:
                found += [part for part in parts(one) if part not in found]
    return found


def described(kind: Any) -> dict[str, Any]:
    """The schema's description of a dataclass."""
    found: dict[str, Any] = SCHEMA["$defs"][kind.__name__]
    return found


@pytest.mark.parametrize("kind", parts(Document), ids=lambda kind: kind.__name__)
def test_the_schema_has_every_field_and_no_other(kind: Any) -> None:
    names = [one.name for one in fields(kind)]
    assert list(described(kind)["properties"]) == names == described(kind)["required"]
    assert described(kind)["additionalProperties"] is False


def test_the_schema_has_the_same_words() -> None:
    assert set(SCHEMA["$defs"]["Seccomp"]["properties"]["mode"]["enum"]) == {None, *in_force.SeccompMode}
    assert set(SCHEMA["$defs"]["Namespace"]["properties"]["owner"]["enum"]) == {None, *in_force.Owner}


def sample() -> dict[str, Any]:
    """Return an inspection of the test's own process."""
    view = inspection.host_view(os.getpid())
    limits = inspection.limits_in_force(None, view)
    found = inspection.inspection(view, os.getpid(), limits, inspection.network_of(view, "", own=False), (False, None))
    document = Document(
        id="0123456789ab",
        name="web",
        workload="sleep",
        isolation="process",
        accelerator=None,
        created="2026-11-28T11:54:42.335+00:00",
        state=Now("up 1 s", running=True, paused=False, exit_code=None, pid=os.getpid(), owner=None),
        settings=[Fact("cpus", 1.0, None, None)],
        requested={},
        effective=found,
        effective_error=None,
        startup={"total": 0.5},
        resources=Resources("198.18.2.1", "02:5b:c6:12:02:01", None, [], "/", "x", {}),
    )
    value: dict[str, Any] = json.loads(json.dumps(asdict(document)))
    return value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("effective.capabilities.effective", "00000000a80425fb"),
        ("effective.seccomp.mode", "none"),
        ("effective.seccomp.no_new_privileges", True),
        ("effective.namespaces.net", "own"),
        ("effective.namespaces.net.owner", "own"),
        ("effective.limits.memory", "128MiB"),
        ("effective.limits.memory", 1.5),
        ("effective.limits.cpus", True),
        ("effective.user.uid", "10001"),
        ("effective.ended", {"code": 0}),
        ("effective.oom_killed", 0),
        ("effective.process.guest", None),
        ("created", "yesterday"),
        ("state.running", "yes"),
    ],
)
def test_the_schema_refuses_other_types_words_and_keys(path: str, value: Any) -> None:
    document = sample()
    jsonschema.validate([document], SCHEMA)
    *way, last = path.split(".")
    place = document
    for name in way:
        place = place[name]
    place[last] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([document], SCHEMA)


@pytest.mark.parametrize("path", ["effective.network.mac", "effective.ended", "effective.user.setgroups", "settings"])
def test_the_schema_misses_what_is_left_out(path: str) -> None:
    document = sample()
    *way, last = path.split(".")
    place = document
    for name in way:
        place = place[name]
    del place[last]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([document], SCHEMA)
