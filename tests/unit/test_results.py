"""The result document: reading returns what was written, and anything else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import phases, results
from sandbox.results import FORMAT, VERSION, ResultsError, Status, Verdict
from tests.unit.documents import comparison


def raw(**changes: Any) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(results.dumps(comparison(samples=2)))
    document.update(changes)
    return document


def test_a_document_survives_a_round_trip() -> None:
    document = comparison(failing=("vm",), unavailable=("gvisor",))
    assert results.loads(results.dumps(document)) == document


def test_the_phases_are_those_of_the_manager() -> None:
    assert tuple(phase.value for phase in phases.ORDER) == results.PHASES


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "null", '{"format": "else"}', "[" * 100_000, '{"a": 1, "a": 2}', "NaN"]
)
def test_what_is_no_document_is_refused(text: str) -> None:
    with pytest.raises(ResultsError, match="not a result document"):
        results.loads(text)


def test_another_version_is_refused_by_its_number() -> None:
    with pytest.raises(ResultsError, match=f"version 99, and this sandbox reads version {VERSION}"):
        results.loads(json.dumps({"format": FORMAT, "version": 99}))


def test_a_missing_key_is_named() -> None:
    document = raw()
    del document["host"]["kernel"]
    with pytest.raises(ResultsError, match=r"document\.host\.kernel is missing"):
        results.loads(json.dumps(document))


def test_an_unknown_key_is_named() -> None:
    document = raw()
    document["samples"][3]["speed"] = 1
    with pytest.raises(ResultsError, match=r"document\.samples\[3\]\.speed is unknown"):
        results.loads(json.dumps(document))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("plan", "samples"), True, "plan.samples is bool, not int"),
        (("plan", "samples"), 1.5, "plan.samples is float, not int"),
        (("plan", "cpus"), "1", "plan.cpus is str, not float"),
        (("status",), "perhaps", "status is 'perhaps', not one of"),
        (("levels",), {}, "levels is dict, not list"),
        (("host", "governor"), 3, "host.governor is int, not str"),
        (("plan", "cpus"), 10**400, "plan.cpus is not a finite number"),
        (("host", "kernel"), "\ud800", "host.kernel is not text"),
    ],
)
def test_a_value_of_another_type_is_named(place: tuple[str, ...], value: object, message: str) -> None:
    document = raw()
    inner = document
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(ResultsError) as caught:
        results.loads(json.dumps(document))
    assert message in str(caught.value)


@pytest.mark.parametrize("number", ["1e999", "Infinity", "-Infinity", "NaN"])
def test_only_finite_numbers_are_read(number: str) -> None:
    text = results.dumps(comparison(samples=1)).replace('"cpus": 1.0', f'"cpus": {number}')
    with pytest.raises(ResultsError):
        results.loads(text)


def test_a_level_that_is_spoken_of_must_be_listed() -> None:
    document = raw()
    document["samples"][0]["level"] = "bunker"
    with pytest.raises(ResultsError, match="it refers to a level that it does not list"):
        results.loads(json.dumps(document))


def test_a_whole_number_may_stand_for_a_fraction() -> None:
    document = raw()
    document["plan"]["cpus"] = 1
    assert results.loads(json.dumps(document)).plan.cpus == 1.0


@given(st.recursive(st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(), st.lists, max_leaves=4))
def test_any_value_anywhere_is_refused_or_read_but_never_breaks(value: object) -> None:
    document = raw()
    for key in ("status", "host", "samples", "summary", "isolation"):
        changed = {**document, key: value}
        try:
            results.loads(json.dumps(changed))
        except ResultsError:
            continue


def test_saving_replaces_the_file_in_one_step(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    document = comparison(samples=1)
    results.save(document, path)
    document.status = Status.INCOMPLETE
    with path.open() as before:
        results.save(document, path)
        assert json.load(before)["status"] == "complete", "a reader of the old file keeps the old file"
    assert results.load(path).status is Status.INCOMPLETE
    assert [entry.name for entry in tmp_path.iterdir()] == ["results.json"], "no temporary file stays"


def test_a_disk_that_refuses_leaves_the_old_file(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="cannot be written"):
        results.save(comparison(samples=1), tmp_path / "no-such-folder" / "results.json")


def test_a_missing_file_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="cannot be read: No such file"):
        results.load(tmp_path / "none.json")


def test_verdicts_are_words() -> None:
    assert [str(verdict) for verdict in Verdict] == ["ISOLATED", "PARTIAL", "SHARED", "HELD", "NOT HELD", "UNKNOWN"]
