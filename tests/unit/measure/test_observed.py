"""The probe's answers are untrusted input. The probe itself runs here on the host, as the positive control."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.measure.isolation import blockdevice, inside, observed, stressor
from sandbox.measure.isolation.limits import Group, Meter, Reading
from sandbox.measure.isolation.observed import Look, ProbeError
from sandbox.measure.isolation.witness import (
    NAMESPACES,
    Witness,
    family,
    find_by_word,
    has_default_route,
    host_facts,
    resident,
)


def run(mode: str, asked: dict[str, Any], *words: str) -> bytes:
    """Run the probe outside any sandbox."""
    argv = [sys.executable, *observed.command(mode, asked, *words)[1:]]
    return subprocess.run(argv, capture_output=True, timeout=60, check=True).stdout


def test_outside_a_sandbox_the_probe_reaches_everything() -> None:
    with Witness() as witness:
        working = witness.check_listeners()
        asked, words = witness.errand(None)
        look = observed.read_look(run("look", asked))
        noticed = witness.secrets(words, working)
    assert look.marker == witness.marker
    assert look.signalled == "sent"
    assert look.files["path"] == witness.token
    assert {"loopback", "abstract socket"} <= working
    assert noticed.heard == working
    assert noticed.signals >= 1
    assert look.boot_id == host_facts(None).boot_id
    assert look.processes > 1
    assert set(look.calls) == set(inside.CALLS)
    if noticed.disk is not None:
        assert noticed.disk in look.disk.values()


def test_nothing_of_the_witness_is_left() -> None:
    with Witness() as witness:
        marker = find_by_word(witness.marker)
        asked, _ = witness.errand(None)
        assert marker is not None
        assert os.path.exists(asked["file"])
    assert find_by_word(witness.marker) is None
    assert not os.path.exists(os.path.dirname(asked["file"]))


def test_a_sleeper_proves_that_it_ran_and_the_host_finds_it() -> None:
    argv = [sys.executable, *observed.command("sleep", {"seconds": 1.0, "salt": "ab"}, "word-1234")[1:]]
    with subprocess.Popen(argv, stdout=subprocess.PIPE) as process:
        pid = None
        while pid is None and process.poll() is None:
            pid = find_by_word("word-1234")
        assert pid == process.pid
        seen = resident(process.pid)
        assert process.stdout is not None
        (answer,) = observed.answers(process.stdout.read())
    assert seen is not None
    assert seen.uids == (os.getuid(),) * 4
    assert seen.namespaces.keys() == set(NAMESPACES)
    assert answer["proof"] == hashlib.sha256(b"abword-1234").hexdigest()
    assert answer["uid"] == os.getuid()


def test_the_stressors_stop_at_their_own_bound() -> None:
    *_, last = observed.answers(run("memory", {"bytes": 8 << 20, "seconds": 0}))
    assert last == {"held": 8 << 20, "complete": True}
    (last,) = observed.answers(run("forks", {"count": 5, "seconds": 0}))
    assert last == {"forked": 5, "refused": None}


def test_both_programs_speak_the_same_language() -> None:
    assert stressor.TAG == inside.TAG
    assert not stressor.MODES.keys() & inside.MODES.keys()


def test_processes_and_routes_of_the_host() -> None:
    assert os.getpid() in family(os.getppid())
    assert has_default_route(os.getpid()) is not None
    assert has_default_route(2**22 + 1) is None
    assert resident(2**22 + 1) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, for loop devices")
def test_a_block_device_has_the_content_and_goes_with_its_last_user() -> None:
    try:
        device = blockdevice.make()
    except OSError as error:
        pytest.skip(f"no loop devices here: {error}")
    with device.path.open("rb") as stream:
        assert hashlib.sha256(stream.read()).hexdigest() == device.digest
    device.close()
    with device.path.open("rb") as stream:
        assert hashlib.sha256(stream.read()).hexdigest() != device.digest


LOOK: dict[str, object] = {
    "uid": 0, "boot_id": None, "release": "4.4.0", "status": {}, "namespaces": {}, "affinity": 1, "online": 1,
    "memory": None, "processes": 1, "marker": None, "signalled": "ESRCH", "files": {}, "nodes": [], "disk": {},
    "reached": {}, "routes": {}, "calls": {},
}  # fmt: skip


def said(answer: object) -> bytes:
    return (inside.TAG + json.dumps(answer) + "\n").encode()


def test_a_look_is_found_among_noise() -> None:
    output = b"\xff\xfe noise\n" + inside.TAG.encode() + b"{broken\n" + said(LOOK) + b"more\n"
    assert observed.read_look(output).release == "4.4.0"
    assert {field.name for field in dataclasses.fields(Look)} == set(LOOK)


@pytest.mark.parametrize(
    "output",
    [
        b"",
        b"Traceback (most recent call last)",
        said([1]),
        said({key: value for key, value in LOOK.items() if key != "marker"}),
        said(LOOK | {"uid": "0"}),
        said(LOOK | {"extra": 1}),
        said(LOOK | {"files": {"path": 1}}),
        (inside.TAG + "[" * 100000).encode(),
        (inside.TAG + '{"uid": NaN}').encode(),
    ],
)
def test_other_answers_are_refused_in_one_line(output: bytes) -> None:
    with pytest.raises(ProbeError) as caught:
        observed.read_look(output)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=500))
def test_no_output_breaks_the_reader(output: bytes) -> None:
    assert list(observed.answers(output)) is not None
    with pytest.raises(ProbeError):
        observed.read_look(inside.TAG.encode() + output)


@given(st.text())
def test_cleaned_text_fits_a_table(text: str) -> None:
    shown = observed.clean(text)
    assert shown.isprintable()
    assert len(shown) <= observed.MAX_TEXT


def test_a_meter_keeps_what_was_last_read_of_a_group_that_goes() -> None:
    class Going(Group):
        readings = iter([Reading(3, 100, 50), Reading(3, 100, 60), Reading(5, 128, 120), Reading()])

        def __init__(self) -> None:
            pass

        def read(self) -> Reading:
            return next(self.readings, Reading())

    meter = Meter(Going())
    for _ in range(4):
        meter._take()
    assert meter.refusals == 2
    assert meter.peak == 128


def test_a_meter_without_a_group_knows_nothing() -> None:
    with Meter(None) as meter:
        pass
    assert meter.refusals is None
    assert meter.peak is None


def test_groups_of_both_versions(tmp_path: Any) -> None:
    for name, text in {
        "memory.max": "max",
        "memory.events": "low 0\nmax 7\noom_kill 1\n",
        "memory.peak": "4096",
        "memory.current": "1024",
        "memory.limit_in_bytes": "8192",
        "memory.failcnt": "5",
        "memory.oom_control": "oom_kill_disable 0\noom_kill 2\n",
        "memory.max_usage_in_bytes": "8192",
        "memory.usage_in_bytes": "2048",
        "pids.max": "64",
        "pids.events": "max 4",
        "pids.current": "3",
    }.items():
        (tmp_path / name).write_text(text)
    newer, older = Group("memory", tmp_path, v2=True), Group("memory", tmp_path, v2=False)
    assert (newer.limit(), newer.read()) == (None, Reading(7, 4096, 1024))
    assert (older.limit(), older.read()) == (8192, Reading(7, 8192, 2048))
    pids = Group("pids", tmp_path, v2=True)
    assert (pids.limit(), pids.read()) == (64, Reading(4, None, 3))
    assert Group("memory", tmp_path / "gone", v2=True).read() == Reading()
