"""What a user may ask for, and the one line for what not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox import spec
from sandbox.errors import SpecError
from sandbox.spec import MIB, SandboxSpec


@pytest.mark.parametrize("name", ["a", "web-1", "0", "a" * 63])
def test_names_that_are_fine(name: str) -> None:
    assert spec.parse_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "A", "a_b", "a.b", "a/b", "a" * 64, "ä", "a\n", " a", "a\0"])
def test_names_that_are_not(name: str) -> None:
    with pytest.raises(SpecError):
        spec.parse_name(name)


@pytest.mark.parametrize(
    ("text", "value"),
    [("256m", 256 * MIB), ("1g", 1024 * MIB), ("1.5G", 1536 * MIB), ("65536k", 64 * MIB), ("33554432", 32 * MIB),
     ("64MB", 64 * MIB), ("64MiB", 64 * MIB)],
)  # fmt: skip
def test_memory(text: str, value: int) -> None:
    assert spec.parse_memory(text) == value


@pytest.mark.parametrize("text", ["5", "", "m", "-1m", "1e9", "nan", "inf", "lots", "1 m", "0x10", "15m", "0"])
def test_memory_that_makes_no_sense(text: str) -> None:
    with pytest.raises(SpecError):
        spec.parse_memory(text)


def test_memory_above_the_host() -> None:
    assert spec.parse_memory("64m", 64 * MIB) == 64 * MIB
    with pytest.raises(SpecError, match="more than the host"):
        spec.parse_memory("65m", 64 * MIB)


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "-inf", "", "one", "0.001", "3"])
def test_cpus_that_make_no_sense(text: str) -> None:
    with pytest.raises(SpecError):
        spec.parse_cpus(text, 2)


@pytest.mark.parametrize(("text", "value"), [("1", 1.0), ("0.5", 0.5), ("2", 2.0), ("0.01", 0.01)])
def test_cpus(text: str, value: float) -> None:
    assert spec.parse_cpus(text, 2) == value


def refusal(parse: Callable[[str], object], text: str) -> str:
    """The message that a parser refuses a text with, empty where it takes it."""
    try:
        parse(text)
    except SpecError as error:
        return error.message
    return ""


@given(st.text())
def test_no_text_crashes_a_parser(text: str) -> None:
    parsers = (spec.parse_name, spec.parse_memory, spec.parse_cpus, lambda text: spec.parse_cpuset(text, {0, 1}))
    for parse in parsers:
        assert "\n" not in refusal(parse, text)


@pytest.mark.parametrize("value", [-1, 0, 7, 4_194_305])
def test_pids_that_make_no_sense(value: int) -> None:
    with pytest.raises(SpecError):
        spec.parse_pids(value)


def test_env() -> None:
    assert spec.parse_env(["B=2", "A=x=y", "C"], {"C": "from here"}) == (("A", "x=y"), ("B", "2"), ("C", "from here"))
    assert spec.parse_env(["A=1", "A=2"], {}) == (("A", "2"),)
    assert spec.parse_env(["A="], {}) == (("A", ""),)


@pytest.mark.parametrize("entry", ["=x", "1A=x", "A B=x", "A=x\ny", "A=x\0", "NOT_SET", "", "A-B=c"])
def test_env_that_is_refused(entry: str) -> None:
    with pytest.raises(SpecError):
        spec.parse_env([entry], {})


@pytest.mark.parametrize(("text", "value"), [("0", "0"), ("0-1", "0,1"), ("1,0", "0,1"), ("0,0", "0")])
def test_cpuset(text: str, value: str) -> None:
    assert spec.parse_cpuset(text, {0, 1}) == value


@pytest.mark.parametrize("text", ["", "a", "1-0", "2", "0-9", "-1", "0,", "0--1"])
def test_cpuset_that_is_refused(text: str) -> None:
    with pytest.raises(SpecError):
        spec.parse_cpuset(text, {0, 1})


def test_json_round_trip() -> None:
    one = SandboxSpec("a", "reactor", "vm", ("x", "y"), env=(("A", "b"),), cpus=0.5, cpuset="0")
    assert SandboxSpec.from_json(one.to_json()) == one
