"""State on disk that is full, damaged, of another version or boot, or hostile: told in one line, never acted on.

Each record belongs to a sandbox that really runs, so that what it made must be found without it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandbox.errors import EngineError, NewerRecordError, SandboxError, StoreError, UnavailableError
from sandbox.isolation import keeper
from sandbox.isolation.docker.sandbox import Handle
from sandbox.kernel import syscalls
from sandbox.kernel.cgroup import Group
from sandbox.phases import Status
from sandbox.spec import SandboxSpec
from sandbox.state import files, paths
from sandbox.state.processid import ProcessId
from sandbox.state.record import VERSION
from sandbox.state.store import RECORD_FILE, Store
from tests import leaks
from tests.verbs import Manager, Running

ROOT = Path(__file__).resolve().parents[2]
NAME = "state-files"
pytestmark = pytest.mark.level("namespace")


def cli(*argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sandbox", *argv],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def served(running: Running) -> bool:
    with urllib.request.urlopen(str(running.url), timeout=10) as reply:
        return bool(reply.status == 200)


@pytest.fixture
def running() -> Iterator[Running]:
    """A sandbox whose record the test spoils; with a sound one again it is removed, where it still is."""
    manager = Manager()
    found = manager.run(manager.make_spec("reactor", "namespace", name=NAME))
    sound = (found.record.directory / RECORD_FILE).read_bytes()
    yield found
    if found.record.directory.is_dir():
        files.remove(found.record.directory / RECORD_FILE)
        (found.record.directory / RECORD_FILE).write_bytes(sound)
        manager.remove(NAME, force=True)


def path_of(running: Running) -> Path:
    return running.record.directory / RECORD_FILE


def change(running: Running, **fields: Any) -> None:
    path = path_of(running)
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def truncate(running: Running) -> None:
    os.truncate(path_of(running), path_of(running).stat().st_size // 2)


def empty(running: Running) -> None:
    os.truncate(path_of(running), 0)


def enlarge(running: Running) -> None:
    os.truncate(path_of(running), 1 << 40)


def link(running: Running) -> None:
    elsewhere = path_of(running).rename(running.record.directory / "elsewhere")
    path_of(running).symlink_to(elsewhere)


def fifo(running: Running) -> None:
    path_of(running).unlink()
    os.mkfifo(path_of(running))


def directory(running: Running) -> None:
    path_of(running).unlink()
    path_of(running).mkdir()


def gone(running: Running) -> None:
    path_of(running).unlink()


def wrong_types(running: Running) -> None:
    change(running, spec=[], process="1", handle=[])


def path_like_id(running: Running) -> None:
    change(running, id="../../../tmp")


def escapes_in_the_name(running: Running) -> None:
    raw = json.loads(path_of(running).read_text())
    change(running, spec=raw["spec"] | {"name": "\x1b[2Jx"})


def the_hosts_address(running: Running) -> None:
    change(running, address="198.18.0.1")


def process_one(running: Running) -> None:
    raw = json.loads(path_of(running).read_text())
    change(running, process=raw["process"] | {"pid": 1})


@pytest.mark.parametrize(
    "spoil",
    [
        truncate,
        empty,
        enlarge,
        link,
        fifo,
        directory,
        gone,
        wrong_types,
        path_like_id,
        escapes_in_the_name,
        the_hosts_address,
        process_one,
    ],
)
def test_prune_finds_all_of_a_sandbox_whose_record_is_none(running: Running, spoil: Callable[[Running], None]) -> None:
    ident, process = running.record.id, running.record.process
    assert process is not None
    spoil(running)
    listed = cli("ps", "-a")
    assert (listed.returncode, NAME in listed.stdout) == (0, False)
    refused = cli("rm", "-f", NAME)
    assert refused.stderr.count("\n") <= 1
    assert "Traceback" not in refused.stderr
    assert process.alive(), "it was removed by a record that is none"
    said = cli("prune")
    assert said.returncode == 0, said.stderr
    assert f"broken record {ident}" in said.stdout
    assert not process.alive()
    assert not Group(ident).pids()
    assert not running.record.directory.exists()


def test_a_newer_record_is_left_alone_and_told_of(running: Running) -> None:
    change(running, version=VERSION + 1)
    said = cli("prune")
    assert said.returncode == 0
    assert running.record.id not in said.stdout
    line = (
        f"kept: sandbox {running.record.id} was created by a newer version of sandbox: "
        f"the record's version is {VERSION + 1}"
    )
    assert said.stderr.count(line) == 1
    assert served(running)
    with pytest.raises(NewerRecordError, match=f"version is {VERSION + 1}"):
        Manager().remove(NAME, force=True)
    assert served(running)


def test_a_level_of_the_future_is_left_alone(running: Running) -> None:
    raw = json.loads(path_of(running).read_text())
    change(running, spec=raw["spec"] | {"isolation": "unikernel"})
    said = cli("prune")
    assert f"kept: sandbox {NAME} has a level that this version of sandbox does not have" in said.stderr
    assert served(running)


# --- processes that a record names --------------------------------------------------------------------------------


@pytest.fixture
def stranger() -> Iterator[ProcessId]:
    """A process of somebody else."""
    with subprocess.Popen(["sleep", "300"]) as sleeper:
        process = ProcessId.of(sleeper.pid)
        assert process is not None
        yield process
        sleeper.kill()


def _json(process: ProcessId) -> dict[str, Any]:
    return {"pid": process.pid, "start_time": process.start_time, "boot_id": process.boot_id}


def test_a_process_of_somebody_else_is_never_signalled_nor_entered(running: Running, stranger: ProcessId) -> None:
    """Even when pid, start time and boot are those of a process that lives: the kernel says whose it is."""
    change(running, process=_json(stranger))
    (running.record.directory / keeper.LOCK).write_text(str(stranger.pid))
    manager = Manager()
    found = manager.get(NAME)
    assert not found.sandbox.state().running
    for number in (signal.SIGTERM, signal.SIGKILL):
        with pytest.raises(EngineError, match="not running"):
            found.sandbox.kill(number)
    with pytest.raises(EngineError, match="not running"):
        found.sandbox.exec(["true"], timeout=10)
    with pytest.raises(EngineError):
        found.sandbox.pause()
    manager.stop(NAME, 1)
    assert stranger.alive()
    manager.remove(NAME, force=True)
    assert stranger.alive()
    assert running.record.process is not None
    assert not running.record.process.alive(), "the control: its own process is ended, by its control group"


def test_an_owner_is_asked_about_and_not_touched(running: Running, stranger: ProcessId) -> None:
    change(running, owner=_json(stranger))
    manager = Manager()
    assert not [line for line in manager.prune() if NAME in line]
    assert served(running)
    change(running, owner=_json(stranger) | {"start_time": stranger.start_time + 1})
    assert [line for line in manager.prune() if NAME in line], "its owner is dead: the pid is another's now"
    assert stranger.alive()


def test_a_pid_that_came_to_be_anothers(running: Running) -> None:
    process = running.record.process
    assert process is not None
    change(running, process=_json(process) | {"start_time": process.start_time + 1})
    manager = Manager()
    assert not manager.get(NAME).sandbox.state().running
    assert [line for line in manager.prune() if line.startswith(f"sandbox {NAME} ")]


@pytest.mark.parametrize("ended", [True, False])
def test_after_a_reboot(running: Running, ended: bool) -> None:
    """A record of an earlier boot: it has ended, whatever runs under its pid now."""
    manager = Manager()
    if ended:
        manager.stop(NAME, 5)
    before = "00000000-0000-0000-0000-000000000000"
    raw = json.loads(path_of(running).read_text())
    change(running, boot_id=before, process=raw["process"] | {"boot_id": before})
    assert not manager.get(NAME).sandbox.state().running
    listed = json.loads(cli("ps", "-a", "--format", "json").stdout)
    (found,) = [one for one in listed if one["name"] == NAME]
    assert found["running"] is False
    assert NAME not in cli("ps").stdout
    assert [line for line in manager.prune() if line.startswith(f"sandbox {NAME} ")]
    assert not running.record.directory.exists()
    assert not Group(running.record.id).pids()


# --- what lies in the directory -----------------------------------------------------------------------------------


def test_a_mount_that_leads_outside_is_not_reached_through(running: Running, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("")
    inside = running.record.directory / "evil"
    inside.mkdir()
    syscalls.mount(str(tmp_path), str(inside), None, syscalls.MS_BIND)
    try:
        with pytest.raises(StoreError, match=f"still mounted.*umount -R {inside}"):
            Manager().remove(NAME, force=True)
        said = cli("prune")
        assert "still mounted" in said.stderr
        assert precious.exists()
    finally:
        syscalls.umount(str(inside))
    assert cli("prune").returncode == 0
    assert not running.record.directory.exists()
    assert precious.exists()


def test_links_that_lead_outside_are_removed_and_not_followed(running: Running, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("")
    for name in ("evil", "root", "app"):
        (running.record.directory / name).symlink_to(tmp_path)
    (running.record.directory / "log").unlink()
    (running.record.directory / "log").symlink_to(tmp_path / "precious")
    Manager().remove(NAME, force=True)
    assert not running.record.directory.exists()
    assert (tmp_path / "precious").exists()


@pytest.mark.level("container")
def test_an_engine_elsewhere_that_a_record_names(tmp_path: Path) -> None:
    """It is asked there and nowhere else; that it does not answer is one line, and hinders nobody."""
    manager, store = Manager(), Store()
    ident, lock = store.claim_id()
    os.close(lock)
    try:
        store.claim_address("198.18.2.250", ident)
        record = store.new(SandboxSpec(NAME, "reactor", "container", ("x",)), "198.18.2.250", ident)
        record.status = Status.RUNNING
        record.keep_handle(Handle(f"{tmp_path}/nobody.sock"))
        store.save(record)
        with manager.running(manager.make_spec("reactor", "container")) as bystander:
            with pytest.raises(UnavailableError, match=r"nobody\.sock"):
                manager.prune()
            with pytest.raises(UnavailableError, match=r"nobody\.sock"):
                manager.remove(NAME, force=True)
            refused = cli("rm", "-f", NAME)
            assert (refused.returncode, refused.stderr.count("\n")) == (125, 1)
            assert served(bystander)
        assert store.load(ident).id == ident, "what could not be asked about is kept"
    finally:
        assert not store.remove([ident])
        manager.prune()


# --- a disk that is full ------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A state directory of its own, on 32 pages and some inodes, with the images of the usual one."""
    assert not Store().used_addresses(), "this test needs the lab network for itself"
    images, host = paths.images_dir(), paths.host_dir()
    state = Path(tempfile.mkdtemp(prefix="sandbox-small-", dir="/run"))  # where every user may pass
    state.chmod(0o711)
    syscalls.mount("tmpfs", str(state), "tmpfs", 0, "size=128k,nr_inodes=64")
    try:
        monkeypatch.setenv(paths.STATE_ENV, str(state))
        Store().ensure()
        (state / "images").mkdir()
        syscalls.mount(str(images), str(state / "images"), None, syscalls.MS_BIND)
        for known in host.glob("*.json"):
            if not known.name.startswith("daemon-"):
                (state / "host" / known.name).write_bytes(known.read_bytes())
        yield state
    finally:
        for mounted in reversed(files.mounts_below(state.parent)):
            if f"{mounted}/".startswith(f"{state}/"):
                syscalls.umount(mounted, syscalls.MNT_DETACH)
        state.rmdir()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["inodes", "bytes"])
def test_a_full_disk_is_told_in_a_line_and_nothing_is_left(small_disk: Path, what: str) -> None:
    """With more and more room, until a sandbox fits: it fails at each of its files in turn."""
    before = leaks.snapshot()
    outcomes = []
    for room in range(24):
        filler = small_disk / "filler"
        filler.mkdir()
        try:
            _fill(filler, what, room)
            done = cli("run", "-d", "reactor", "--isolation", "namespace", "--name", NAME)
        finally:
            files.remove(filler)
        outcomes.append(done.returncode)
        if done.returncode == 0:
            assert cli("rm", "-f", NAME).returncode == 0
        else:
            assert done.returncode == 125
            assert done.stderr.startswith("sandbox: ")
            assert done.stderr.count("\n") == 1, done.stderr
        cli("prune")
        left = leaks.leaked(before)
        assert not left, f"with room for {room}: {left} after {done.stderr}"
        if outcomes[-2:] == [0, 0]:
            break
    assert outcomes[0] != 0, "the disk was not full"
    assert outcomes[-1] == 0


def _fill(directory: Path, what: str, room: int) -> None:
    """Leave so many inodes, or pages, on the file system."""
    found = os.statvfs(directory)
    if what == "inodes":
        for number in range(found.f_ffree - room):
            (directory / str(number)).touch()
    else:
        (directory / "all").write_bytes(b"x" * max(0, found.f_bfree - room) * found.f_bsize)


def test_a_removal_needs_no_room(small_disk: Path) -> None:
    manager = Manager()
    running = manager.run(manager.make_spec("reactor", "namespace", name=NAME))
    (small_disk / "filler").mkdir()
    _fill(small_disk / "filler", "inodes", 0)
    try:
        manager.remove(NAME, force=True)
    except SandboxError as error:
        pytest.fail(f"on a full disk it cannot be removed: {error}")
    finally:
        files.remove(small_disk / "filler")
    assert not running.sandbox.state().running
