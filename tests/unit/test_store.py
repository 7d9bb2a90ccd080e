"""The state on disk: claims that cannot both win, records that are whole or refused, locks that die with a holder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sandbox import paths
from sandbox.errors import BusyError, NameTakenError, NotFoundError, StoreError
from sandbox.processid import ProcessId, start_time
from sandbox.record import Record
from sandbox.spec import SandboxSpec
from sandbox.store import MAX_RECORD, Store, named_lock


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
    store.forget(record.id)
    assert store.ids() == []
    assert store.used_addresses() == set()
    assert not list(paths.names_dir().iterdir())
    store.forget(record.id)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b'{"version": 1}', b"\xff\xfe", b'{"version": 99}', b'{"version": 1, "id": "../../x"}'],
)
def test_a_record_that_is_not_ours(store: Store, content: bytes) -> None:
    record = add(store)
    (record.directory / "record.json").write_bytes(content)
    with pytest.raises(StoreError, match="record"):
        store.load(record.id)
    assert store.records() == []


def test_a_huge_record_is_not_read(store: Store) -> None:
    record = add(store)
    with (record.directory / "record.json").open("wb") as stream:
        stream.truncate(MAX_RECORD + 1)
    with pytest.raises(StoreError, match="too large"):
        store.load(record.id)


def test_a_record_under_another_id(store: Store) -> None:
    record = add(store)
    raw = record.to_json() | {"id": "f" * 12}
    (record.directory / "record.json").write_text(json.dumps(raw))
    with pytest.raises(StoreError, match="claims to be"):
        store.load(record.id)


def test_stray_claims_are_found(store: Store) -> None:
    add(store)
    store.claim_address("198.18.2.7", "0" * 12)
    assert [claim.name for claim in store.stray_claims()] == ["198.18.2.7"]


def test_known_is_live(store: Store) -> None:
    known = store.known()
    assert "nonsense" not in known
    record = add(store)
    assert record.id in known
    assert list(known) == [record.id]
    assert record.id not in store.known(but=record.id)
    store.forget(record.id)
    assert record.id not in known


def test_a_lock_is_held_and_dies_with_its_holder(store: Store) -> None:
    record = add(store)
    script = (
        "import sys,time\nfrom sandbox.store import Store\n"
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
