"""Test the state on disk: exclusive claims, records that are complete or refused, locks that end with their holder."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox import failpoints
from sandbox.errors import BusyError, NameTakenError, NewerRecordError, NotFoundError, StoreError
from sandbox.failpoints import Failpoint
from sandbox.spec import SandboxSpec
from sandbox.state import files, paths
from sandbox.state.processid import ProcessId, start_time
from sandbox.state.record import VERSION, Record
from sandbox.state.store import GONE_PREFIX, Store, named_lock


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv(paths.STATE_ENV, str(tmp_path / "state"))
    made = Store()
    made.ensure()
    return made


def spec(name: str = "one") -> SandboxSpec:
    return SandboxSpec(name, "reactor", "namespace", ("server",))


def add(store: Store, name: str = "one", address: str = "198.18.2.1") -> Record:
    ident, lock = store.claim_id()
    try:
        store.claim_address(address, ident)
        return store.new(spec(name), address, ident)
    finally:
        os.close(lock)


def test_found_by_name_id_and_beginning(store: Store) -> None:
    record = add(store)
    for reference in ("one", record.id, record.id[:5]):
        assert store.find(reference) == record
    assert store.records() == [record]


@pytest.mark.parametrize("reference", ["", "two", "../one", "/etc/passwd", "x" * 300, "\0"])
def test_what_is_not_there(store: Store, reference: str) -> None:
    if reference == "../one":
        reference = "../names/two"
    with pytest.raises(NotFoundError):
        store.find(reference)


def test_a_name_is_taken_once(store: Store) -> None:
    first = add(store)
    with pytest.raises(NameTakenError, match="taken"):
        add(store, address="198.18.2.2")
    assert store.find("one").id == first.id


def test_an_address_is_claimed_once(store: Store) -> None:
    assert store.claim_address("198.18.2.9", "0" * 12)
    assert not store.claim_address("198.18.2.9", "1" * 12)
    assert store.used_addresses() == {"198.18.2.9"}


def test_forget_takes_everything(store: Store) -> None:
    record = add(store)
    assert not store.remove([record.id])
    assert store.ids() == []
    assert store.used_addresses() == set()
    assert not list(paths.names_dir().iterdir())
    assert not store.remove([record.id])


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"version": 1}', b"\xff\xfe", b'{"version": 1, "id": "../../x"}', b"[" * 200_000],
)
def test_a_record_that_is_not_ours(store: Store, content: bytes) -> None:
    record = add(store)
    (record.directory / "record.json").write_bytes(content)
    with pytest.raises(StoreError, match="record"):
        store.load(record.id)
    assert store.records() == []


PROCESS = {"pid": 4321, "start_time": 1, "boot_id": "b"}
EXIT = {"code": 0, "time": 1.0, "oom_killed": None, "reason": None}
HOSTILE: list[dict[str, Any]] = [
    {"version": True},
    {"version": 1},
    {"version": 2},
    {"version": "2"},
    {"version": 0},
    {"id": "../../etc"},
    {"id": ["0" * 12]},
    {"address": "10.0.0.1"},
    {"address": "198.18.0.1"},  # the host's own
    {"address": "198.18.1.9"},  # Docker's
    {"address": "198.18.2.1/0"},
    {"address": "198.18.2.1\n"},
    {"address": None},
    {"status": "immortal"},
    {"created": 1e300},
    {"created": -1},
    {"created": "now"},
    {"boot_id": 7},
    {"owner": 1},
    {"owner": PROCESS | {"start_time": -5}},
    {"process": PROCESS | {"pid": 1}},
    {"process": PROCESS | {"pid": 0}},
    {"process": PROCESS | {"pid": -1}},  # kill(2): everybody
    {"process": PROCESS | {"pid": 2**40}},
    {"process": PROCESS | {"pid": "4321"}},
    {"process": PROCESS | {"pid": True}},
    {"process": {"pid": 4321}},
    {"process": PROCESS | {"more": 1}},
    {"timeline": {"prepare": [1, 2]}},
    {"timeline": {"spans": {"prepare": [2, 1]}}},
    {"timeline": {"spans": {"prepare": [1, 2, 3]}}},
    {"timeline": {"spans": {"start": [1, 2]}}},
    {"timeline": {"spans": {"never": [1, 2]}}},
    {"timeline": []},
    {"data": {}},
    {"handle": []},
    {"handle": "/x"},
    {"handle": {"socket": ["/x"]}},
    {"handle": {"socket": {"host": "/x"}}},
    {"handle": {"container": 1}},
    {"exit": 0},
    {"exit": {"code": 0}},
    {"exit": EXIT | {"code": "0"}},
    {"exit": EXIT | {"time": -1}},
    {"exit": EXIT | {"time": 1e300}},
    {"exit": EXIT | {"code": 256}},
    {"exit": EXIT | {"code": -9}},
    {"exit": EXIT | {"oom_killed": 1}},
    {"paused": 1},
    {"paused": None},
    {"warm": True},
    {"accelerator": ["kvm"]},
    {"spec": None},
    {"spec": {}},
]
HOSTILE_SPEC: list[dict[str, Any]] = [
    {"name": "../../../etc/passwd"},
    {"name": "a\x1b[2Jb"},
    {"name": "-rf"},
    {"name": ""},
    {"name": "\ud800"},
    {"isolation": 3},
    {"isolation": None},
    {"argv": "server"},
    {"argv": 3},
    {"env": [["A"]]},
    {"env": [["A", "B", "C"]]},
    {"env": {"A": "B"}},
    {"env": "AB"},
    {"port": 0},
    {"port": 65536},
    {"port": "80"},
    {"cpus": 0},
    {"cpus": "1"},
    {"memory": -1},
    {"memory": 1.5},
    {"pids_limit": 0},
    {"mounts": [{"source": 1, "target": "/x"}]},
    {"mounts": [{"target": "/x"}]},
    {"mounts": ["/:/"]},
    {"publish": [{"host": 0, "inside": 80}]},
    {"publish": [{"host": "80", "inside": 80}]},
    {"publish": 80},
    {"app": "yes"},
    {"workdir": 1},
    {"surprise": 1},
]


def _ids(cases: list[dict[str, Any]]) -> list[str]:
    return [ascii(one)[:40] for one in cases]


@pytest.mark.parametrize("change", HOSTILE, ids=_ids(HOSTILE))
def test_a_record_with_something_wrong_in_it(store: Store, change: dict[str, Any]) -> None:
    record = add(store)
    if "spec" not in change:
        assert store.load(record.id) == record
    (record.directory / "record.json").write_text(json.dumps(record.to_json() | change))
    with pytest.raises(StoreError, match="unreadable") as caught:
        store.load(record.id)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", HOSTILE_SPEC, ids=_ids(HOSTILE_SPEC))
def test_a_spec_with_something_wrong_in_it(store: Store, change: dict[str, Any]) -> None:
    record = add(store)
    raw = record.to_json()
    raw["spec"] |= change
    (record.directory / "record.json").write_text(json.dumps(raw))
    with pytest.raises(StoreError, match="unreadable") as caught:
        store.load(record.id)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("text", ['"cpus": NaN', '"cpus": 1e999', '"cpus": 1.0, "cpus": 2.0'])
def test_numbers_that_are_none_and_keys_that_come_twice(store: Store, text: str) -> None:
    record = add(store)
    whole = json.dumps(record.to_json())
    assert '"cpus": 1.0' in whole
    (record.directory / "record.json").write_text(whole.replace('"cpus": 1.0', text))
    with pytest.raises(StoreError, match="unreadable"):
        store.load(record.id)


def _json() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    )


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_part_may_be_anything(data: st.DataObject) -> None:
    """A sound record with one value replaced: read alike, refused as ValueError and its like, and nothing else."""
    record = Record(id="0" * 12, spec=spec(), address="198.18.2.1", process=ProcessId(77, 1, "b"))
    raw: Any = json.loads(json.dumps(record.to_json()))
    place = raw
    while True:
        key = data.draw(st.sampled_from(sorted(place)))
        if isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
            place = place[key]
            continue
        place[key] = data.draw(_json())
        break
    with contextlib.suppress(StoreError, ValueError, KeyError, TypeError, AttributeError):
        found = Record.from_json(raw)
        # A record that was accepted can be written again, unchanged.
        assert Record.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_an_older_record_is_refused_with_one_line(store: Store) -> None:
    record = add(store)
    (record.directory / "record.json").write_text(json.dumps({"version": VERSION - 1, "shape": "of old"}))
    with pytest.raises(
        StoreError, match=rf"an older sandbox wrote it \(version {VERSION - 1}.*sandbox prune"
    ) as caught:
        store.load(record.id)
    assert "\n" not in str(caught.value)


@dataclass(frozen=True)
class Handle:
    name: str
    number: str | None = None


def test_a_levels_handle_comes_back_as_it_was_kept(store: Store) -> None:
    record = add(store)
    assert store.load(record.id).read_handle(Handle) is None
    record.keep_handle(Handle("a", "1"))
    store.save(record)
    assert store.load(record.id).read_handle(Handle) == Handle("a", "1")
    record.keep_handle(Handle("a"))
    assert record.read_handle(Handle) == Handle("a")


@pytest.mark.parametrize(
    "kept", [{}, {"name": "a"}, {"name": None, "number": None}, {"name": "a", "number": None, "more": None}]
)
def test_a_handle_of_another_kind_is_refused(store: Store, kept: dict[str, str | None]) -> None:
    record = add(store)
    record.handle = kept
    store.save(record)
    with pytest.raises(StoreError, match="unreadable") as caught:
        store.load(record.id).read_handle(Handle)
    assert "\n" not in str(caught.value)


def test_a_newer_record_is_told_apart(store: Store) -> None:
    record = add(store)
    raw = {"version": VERSION + 1, "shape": "nobody knows yet"}
    (record.directory / "record.json").write_text(json.dumps(raw))
    with pytest.raises(NewerRecordError, match=f"version is {VERSION + 1}.*up to {VERSION}"):
        store.load(record.id)
    assert store.records() == []


def test_a_huge_record_is_not_read(store: Store) -> None:
    record = add(store)
    with (record.directory / "record.json").open("wb") as stream:
        stream.truncate(1 << 40)
    with pytest.raises(StoreError, match="too large"):
        store.load(record.id)


def test_a_record_under_another_id(store: Store) -> None:
    record = add(store)
    raw = record.to_json() | {"id": "f" * 12}
    (record.directory / "record.json").write_text(json.dumps(raw))
    with pytest.raises(StoreError, match="claims to be"):
        store.load(record.id)


def _to_link(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def _to_fifo(path: Path, outside: Path) -> None:
    os.mkfifo(path)


def _to_directory(path: Path, outside: Path) -> None:
    path.mkdir()
    (path / "x").write_text("")


@pytest.mark.parametrize("make", [_to_link, _to_fifo, _to_directory])
def test_no_regular_file_at_the_records_place(store: Store, make: Callable[[Path, Path], None], tmp_path: Path) -> None:
    record = add(store)
    path = record.directory / "record.json"
    outside = tmp_path / "outside"
    outside.write_bytes(path.read_bytes())  # even a valid record is refused through a link
    path.unlink()
    make(path, outside)
    with pytest.raises(StoreError, match="unreadable"):
        store.load(record.id)
    assert not store.remove([record.id])
    assert outside.exists()
    assert not list(paths.sandboxes_dir().iterdir())


@pytest.mark.parametrize("make", [_to_link, _to_fifo])
def test_a_planted_file_in_the_way_of_a_record(
    store: Store, make: Callable[[Path, Path], None], tmp_path: Path
) -> None:
    record = add(store)
    outside = tmp_path / "outside"
    outside.write_text("precious")
    make(record.directory / "record.new", outside)
    store.save(record)
    assert outside.read_text() == "precious"
    assert store.load(record.id) == record


@pytest.mark.parametrize("make", [_to_link, _to_fifo, _to_directory])
def test_no_regular_file_at_a_claims_place(store: Store, make: Callable[[Path, Path], None], tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("0" * 12)
    for path in (paths.names_dir() / "web", paths.addresses_dir() / "198.18.2.8"):
        make(path, outside)
    with pytest.raises(NotFoundError):
        store.find("web")
    assert store.used_addresses() == {"198.18.2.8"}
    assert sorted(store.prune()) == ["claim addresses/198.18.2.8", "claim names/web"]
    assert outside.exists()
    assert store.used_addresses() == set()


def test_what_is_removed_is_inside(store: Store, tmp_path: Path) -> None:
    record = add(store)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("")
    (record.directory / "link").symlink_to(outside)
    (record.directory / "hard").mkdir()
    (record.directory / "hard" / "up").symlink_to("../../..")
    assert not store.remove([record.id])
    assert (outside / "precious").exists()
    assert paths.names_dir().is_dir()


def test_a_link_in_place_of_a_directory(store: Store, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("")
    (paths.sandboxes_dir() / ("a" * 12)).symlink_to(outside)
    assert store.ids() == []
    assert "a" * 12 not in store.known()
    with pytest.raises(StoreError, match="cannot be locked"), store.lock("a" * 12):
        pass
    assert store.prune(dry_run=True) == store.prune() == [f"stray file {paths.sandboxes_dir() / ('a' * 12)}"]
    assert (outside / "precious").exists()
    assert store.prune() == []


def test_what_forgetting_left_half_done_is_swept(store: Store) -> None:
    record = add(store)
    record.directory.rename(record.directory.with_name(GONE_PREFIX + record.id))
    swept = store.prune()
    assert len(swept) == 3  # the directory, the name, the address
    assert not list(paths.sandboxes_dir().iterdir())
    assert store.used_addresses() == set()


def test_stray_claims_are_swept_and_others_kept(store: Store) -> None:
    record = add(store)
    store.claim_address("198.18.2.7", "0" * 12)
    (paths.names_dir() / f".half.{record.id}").write_text(record.id)
    (paths.names_dir() / f".dead.{'0' * 12}").write_text("")
    assert store.prune() == ["claim addresses/198.18.2.7", f"claim names/.dead.{'0' * 12}"]
    assert store.find("one") == record
    assert (paths.names_dir() / f".half.{record.id}").exists()


def test_forgetting_several_at_once(store: Store) -> None:
    records = [add(store, f"web-{number}", f"198.18.2.{number}") for number in range(1, 6)]
    assert not store.remove(record.id for record in records[:4])
    assert store.records() == records[4:]
    assert store.used_addresses() == {"198.18.2.5"}


def test_a_full_disk_leaves_the_old_record_and_no_half_one(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    record = add(store)
    written = files.write_new

    def full(path: Path, content: bytes) -> None:
        written(path, content[:10])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(files, "write_new", full)
    with pytest.raises(StoreError, match="No space left"):
        store.save(record)
    with pytest.raises(StoreError, match="No space left"):
        store.claim_address("198.18.2.9", record.id)
    assert store.load(record.id) == record
    assert [path.name for path in record.directory.iterdir()] == ["record.json"]
    assert store.used_addresses() == {"198.18.2.1"}


def test_known_is_live(store: Store) -> None:
    known = store.known()
    assert "nonsense" not in known
    record = add(store)
    assert record.id in known
    assert list(known) == [record.id]
    assert record.id not in store.known(but=record.id)
    assert not store.remove([record.id])
    assert record.id not in known


def test_a_lock_is_held_and_dies_with_its_holder(store: Store) -> None:
    record = add(store)
    script = (
        "import sys,time\nfrom sandbox.state.store import Store\n"
        f"with Store().lock({record.id!r}):\n print('held',flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(BusyError), store.lock(record.id, wait=False):
            pass
        holder.kill()
        holder.wait()
    with store.lock(record.id, wait=False):
        pass


def test_who_waited_for_a_sandbox_that_was_removed_is_told(store: Store) -> None:
    """And does not hold the lock of a directory that is no more, while a third one believes the sandbox free."""
    record = add(store)
    told: list[BaseException] = []

    def wait() -> None:
        try:
            with store.lock(record.id):
                pass
        except NotFoundError as error:
            told.append(error)

    with store.lock(record.id):
        waiter = threading.Thread(target=wait)
        waiter.start()
        time.sleep(0.1)
        assert not store.remove([record.id])
    waiter.join(5)
    assert len(told) == 1


def test_an_id_is_never_claimed_in_a_directory_that_prune_took(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another command prunes the directory before it is locked, a new one is created."""
    taken: list[str] = []

    def sweep(failpoint: Failpoint) -> None:
        if failpoint is Failpoint.DIRECTORY_MADE and not taken:
            (ident,) = store.ids()
            with store.lock(ident, wait=False):
                assert not store.remove([ident])
            taken.append(ident)

    monkeypatch.setattr(failpoints, "listener", sweep)
    ident, lock = store.claim_id()
    os.close(lock)
    assert taken
    assert ident not in taken
    assert store.ids() == [ident]


def test_named_locks_exclude(store: Store) -> None:
    with named_lock("x"), pytest.raises(BusyError), named_lock("x", wait=False):
        pass


def test_a_process_is_more_than_its_pid() -> None:
    me = ProcessId.of(os.getpid())
    assert me is not None
    assert me.alive()
    assert not ProcessId(me.pid, me.start_time + 1, me.boot_id).alive()
    assert not ProcessId(me.pid, me.start_time, "another boot").alive()
    assert ProcessId.of(2**22 + 1) is None


def test_a_process_is_within_its_control_group_alone() -> None:
    me = ProcessId.of(os.getpid())
    assert me is not None
    line = Path("/proc/self/cgroup").read_text().splitlines()[0]
    mine = line.split(":", 2)[2].strip("/")
    assert not mine or me.within(mine)
    assert not me.within(f"sandbox/{'0' * 12}")
    assert not ProcessId(me.pid, me.start_time + 1, me.boot_id).within(mine)


def test_a_zombie_is_not_alive() -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    assert start_time(child) is None
    os.waitpid(child, 0)


def test_hardware_address_follows_the_address(store: Store) -> None:
    assert add(store).mac == "02:5b:c6:12:02:01"


def test_a_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(paths.STATE_ENV, str(tmp_path / "file" / "state"))
    with pytest.raises(StoreError, match="state directory"):
        Store().ensure()
