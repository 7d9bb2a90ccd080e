"""Test the verbs with a level that does nothing: what they record, how they wait, and the meaning of `force`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import isolation
from sandbox.errors import BusyError, EngineError, NotFoundError
from sandbox.isolation import keeper
from sandbox.isolation.base import State
from sandbox.lifecycle import find, pause, remove, stop, wait
from sandbox.lifecycle.find import get, held
from sandbox.phases import Status
from sandbox.state.record import Exit
from sandbox.state.store import Store
from tests.unit import faked


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SANDBOX_STATE_DIR", str(tmp_path / "state"))
    loaded = dict(isolation._loaded)
    faked.install()
    yield
    isolation._loaded.clear()
    isolation._loaded.update(loaded)


def test_stop_notes_how_it_ended() -> None:
    record = faked.add("web")
    assert stop.stop("web", 1) == 143
    after = Store().load(record.id)
    assert after.status is Status.EXITED
    assert after.exit is not None
    assert after.exit.code == after.exit_code == 143
    assert after.exit.time >= record.created


def test_what_was_noted_of_an_end_is_kept() -> None:
    """The end that the keeper recorded takes precedence over that of a later `stop`."""
    noted = Exit(137, 5.0, oom_killed=True, reason="it met its memory limit")
    record = faked.add("web", running=False, noted={"exit": noted})
    stop.stop("web", 1)
    assert Store().load(record.id).exit == noted


def test_an_end_of_unknown_code_is_noted_anew() -> None:
    record = faked.add("web", running=False, noted={"exit": Exit(None, 5.0)})
    stop.note_end(record.id, 3)
    assert Store().load(record.id).exit_code == 3
    stop.note_end("0" * 12, 3)  # it may have been removed by now


@pytest.mark.parametrize("code", [137, None])
def test_what_the_keeper_wrote_down_goes_into_the_record(code: int | None) -> None:
    """The exit code is the engine's if the keeper does not know it."""
    record = faked.add("web", running=False)
    said = {"code": code, "time": 7.5, "oom_killed": True, "reason": "out of memory"}
    (record.directory / keeper.EXIT).write_text(json.dumps(said))
    stop.note_end(record.id, 137)
    assert Store().load(record.id).exit == Exit(137, 7.5, oom_killed=True, reason="out of memory")


def test_a_handle_sees_what_others_have_written() -> None:
    faked.add("web")
    mine = get("web")
    pause.pause("web")
    assert not mine.record.paused
    with held(mine) as again:
        assert again is mine
        assert mine.record.paused
    pause.unpause(mine)
    assert not get("web").record.paused


def test_wait_takes_the_code_from_the_record(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "_SETTLE", 0.05)
    faked.add("a", running=False, code=7)
    faked.add("b", running=False)
    assert wait.wait("a") == 7
    assert wait.wait(get("b")) is None
    with pytest.raises(NotFoundError):
        wait.wait("none-such")


def test_a_running_one_is_removed_by_force_alone() -> None:
    record = faked.add("web")
    with pytest.raises(BusyError, match="web is running"):
        remove.remove("web")
    assert Store().load(record.id).status is Status.RUNNING
    remove.remove("web", force=True)
    assert Store().ids() == []


def test_one_that_is_gone_is_an_error_by_its_name_without_force() -> None:
    faked.add("web", running=False)
    mine = get("web")
    remove.remove("web")
    with pytest.raises(NotFoundError):
        remove.remove("web")
    remove.remove("web", force=True)
    remove.remove(mine)


def test_several_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remove, "PATIENCE", 0.05)
    ended, running = faked.add("ended", running=False), faked.add("running")
    held_by_another = faked.add("held", running=False)
    with Store().lock(held_by_another.id):
        found = remove.remove_all(["ended", ended.id[:8], "running", "held", "nobody"])
    assert found[:2] == [None, None]
    assert [type(error) for error in found[2:]] == [BusyError, BusyError, NotFoundError]
    assert "held" in str(found[3])
    assert sorted(Store().ids()) == sorted([running.id, held_by_another.id])
    with Store().lock(running.id, wait=False):
        pass  # the lock of a refused one has been released


@pytest.mark.parametrize(("alive", "status"), [(True, Status.RUNNING), (False, Status.REMOVING)])
def test_one_that_cannot_be_removed_stays_recognisable(
    alive: bool, status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(_: object) -> None:
        raise EngineError("its engine is away")

    record = faked.add("web")
    monkeypatch.setattr(faked.FakeSandbox, "remove", fails)
    monkeypatch.setattr(faked.FakeSandbox, "state", lambda _: State(running=alive))
    with pytest.raises(EngineError, match="away"):
        remove.remove("web", force=True)
    assert Store().load(record.id).status is status


def test_everything_leaves_out_what_this_version_does_not_know() -> None:
    faked.add("web")
    faked.add("other", isolation="unheard-of")
    assert [one.record.name for one in find.everything()] == ["web"]
    with pytest.raises(NotFoundError, match="unheard-of"):
        get("other")
