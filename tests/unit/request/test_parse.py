"""Parsing options: the values that are allowed, and the one-line error for any other."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandbox.errors import SpecError
from sandbox.request import parse
from sandbox.spec import MIB, Publish


def refusal(act: Callable[[], object]) -> str:
    """Return the one-line error that a call raises; empty if it raises none."""
    try:
        act()
    except SpecError as error:
        # Message and hint in parentheses, so that an error without a hint fails these tests.
        return str(error) if error.hint else ""
    return ""


@pytest.mark.parametrize("name", ["a", "web-1", "0", "a" * 63])
def test_names_that_are_fine(name: str) -> None:
    assert parse.name(name) == name


@pytest.mark.parametrize(
    "name", ["", "-a", "--", "A", "a_b", "a.b", "a/b", "..", "a" * 64, "ä", "a\n", " a", "a\0", "a b", "\x1b[31m", "٣"]
)
def test_names_that_are_not(name: str) -> None:
    said = refusal(lambda: parse.name(name))
    assert "a-z" in said
    assert said.isprintable()


@pytest.mark.parametrize(
    ("text", "value"),
    [("256m", 256 * MIB), ("1g", 1024 * MIB), ("1.5G", 1536 * MIB), ("65536k", 64 * MIB), ("33554432", 32 * MIB),
     ("64MB", 64 * MIB), ("64MiB", 64 * MIB)],
)  # fmt: skip
def test_memory(text: str, value: int) -> None:
    assert parse.memory(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "5",
        "",
        "m",
        "-1m",
        "1e9",
        "nan",
        "inf",
        "lots",
        "1 m",
        "0x10",
        "15m",
        "0",
        "٣٣٣m",
        "1_000m",
        "+64m",
        "64m\n64m",
        "9" * 400 + "g",
    ],
)
def test_memory_that_makes_no_sense(text: str) -> None:
    assert refusal(lambda: parse.memory(text, 1024 * MIB))


def test_memory_above_the_host() -> None:
    assert parse.memory("64m", 64 * MIB) == 64 * MIB
    assert "more than this host has" in refusal(lambda: parse.memory("65m", 64 * MIB))
    assert "more than this host has" in refusal(lambda: parse.memory("9" * 20 + "t", 64 * MIB))


def test_disk() -> None:
    assert parse.disk("32m", 64 * MIB) == 32 * MIB
    assert parse.disk("64m", 64 * MIB) == 64 * MIB


@pytest.mark.parametrize("text", ["65m", "1k", "0", "-1m", "nan", "", "64", "1e3m"])
def test_disk_that_makes_no_sense(text: str) -> None:
    assert "--disk" in refusal(lambda: parse.disk(text, 64 * MIB))


@pytest.mark.parametrize(("text", "value"), [("1", 1.0), ("0.5", 0.5), ("2", 2.0), ("0.01", 0.01), (".5", 0.5)])
def test_cpus(text: str, value: float) -> None:
    assert parse.cpus(text, 2) == value


@pytest.mark.parametrize(
    "text", ["0", "-1", "nan", "inf", "-inf", "", "one", "0.001", "3", "1_0", "٣", " 1", "1e999", "1e-999", "0x1", "--"]
)
def test_cpus_that_make_no_sense(text: str) -> None:
    assert "--cpus" in refusal(lambda: parse.cpus(text, 2))


@pytest.mark.parametrize("value", [-1, 0, 7, 4_194_305, 10**30])
def test_pids_that_make_no_sense(value: int) -> None:
    assert "--pids-limit" in refusal(lambda: parse.pids(value))


def test_pids_above_the_host() -> None:
    assert parse.pids(32768, 32768) == 32768
    assert "this host" in refusal(lambda: parse.pids(32769, 32768))


def test_env() -> None:
    assert parse.env(["B=2", "A=x=y", "C"], {"C": "from here"}) == (("A", "x=y"), ("B", "2"), ("C", "from here"))
    assert parse.env(["A=1", "A=2"], {}) == (("A", "2"),)
    assert parse.env(["A="], {}) == (("A", ""),)


@pytest.mark.parametrize(
    "entry", ["=x", "1A=x", "A B=x", "A=x\ny", "A=x\ry", "A=x\0", "NOT_SET", "", "A-B=c", "A=\udcff", "É=x", "A\n=x"]
)
def test_env_that_is_refused(entry: str) -> None:
    said = refusal(lambda: parse.env([entry], {}))
    assert said
    assert said.isprintable()


def test_env_taken_from_here_is_checked_too() -> None:
    assert "line break" in refusal(lambda: parse.env(["A"], {"A": "x\ny"}))


def test_env_file() -> None:
    assert parse.env_file("# no\nA=1\n\n  # no\nB=x y\nC\n", {"C": "3"}, "--env-file") == {
        "A": "1", "B": "x y", "C": "3",
    }  # fmt: skip
    assert "1A" in refusal(lambda: parse.env_file("1A=2\n", {}, "--env-file"))


@pytest.mark.parametrize(("text", "value"), [("0", "0"), ("0-1", "0,1"), ("1,0", "0,1"), ("0,0", "0")])
def test_cpuset(text: str, value: str) -> None:
    assert parse.cpuset(text, {0, 1}) == value


@pytest.mark.parametrize("text", ["", "a", "1-0", "2", "0-9", "-1", "0,", "0--1", "٠", "0-99999", "999999"])
def test_cpuset_that_is_refused(text: str) -> None:
    assert "--cpuset-cpus" in refusal(lambda: parse.cpuset(text, {0, 1}))


@pytest.mark.parametrize("value", [0, -1, 65536, 10**12])
def test_ports_that_are_none(value: int) -> None:
    assert "65535" in refusal(lambda: parse.port(value))


@pytest.mark.parametrize(
    ("text", "value"),
    [("8000:80", (8000, 80)), ("127.0.0.1:1:65535", (1, 65535)), ("8000:80/tcp", (8000, 80)),
     ("localhost:8000:80", (8000, 80))],
)  # fmt: skip
def test_published(text: str, value: tuple[int, int]) -> None:
    assert parse.publish(text) == Publish(*value)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("80", "HOST:CTR"), ("", "HOST:CTR"), ("a:b", "HOST:CTR"), (":80", "HOST:CTR"), ("80:", "HOST:CTR"),
        ("0:80", "65535"), ("80:0", "65535"), ("65536:80", "65535"), ("80:65536", "65535"), ("-1:80", "HOST:CTR"),
        ("8000-8010:80-90", "HOST:CTR"), ("8000:80/udp", "TCP"), ("0.0.0.0:80:80", "127.0.0.1"),
        ("192.0.2.1:80:80", "127.0.0.1"), ("[::1]:80:80", "127.0.0.1"), (":80:80", "127.0.0.1"), ("٨:80", "HOST:CTR"),
        ("80:80\n", "HOST:CTR"), ("1e3:80", "HOST:CTR"), ("9999999999999:80", "HOST:CTR"),
    ],
)  # fmt: skip
def test_published_that_is_refused(text: str, word: str) -> None:
    said = refusal(lambda: parse.publish(text))
    assert word in said
    assert said.isprintable()


def test_one_port_of_the_host_leads_to_one_place() -> None:
    assert parse.publications(["9:1", "8:1"]) == (Publish(8, 1), Publish(9, 1))
    assert "twice" in refusal(lambda: parse.publications(["8:1", "127.0.0.1:8:2"]))


@pytest.mark.parametrize("text", ["", "healthz", "/a b", "/a\r\nX: y", "/\0", "/é", "/" + "a" * 1024, "/a#b"])
def test_ready_paths_that_are_none(text: str) -> None:
    assert "not the path of an HTTP request" in refusal(lambda: parse.ready_path(text))


def test_ready_path() -> None:
    assert parse.ready_path("/healthz?full=1") == "/healthz?full=1"


@pytest.mark.parametrize("text", ["", "data", "/a/../b", "/..", "/a\n", "/a\0b", "/a\x1b", "/\udcff", "/" + "a" * 4096])
def test_paths_inside_that_are_refused(text: str) -> None:
    said = refusal(lambda: parse.inside_path(text, "--workdir"))
    assert "--workdir" in said
    assert said.isprintable()


@pytest.mark.parametrize(("text", "value"), [("/a//b/", "/a/b"), ("//a", "/a"), ("/", "/"), ("/./a", "/a")])
def test_paths_inside(text: str, value: str) -> None:
    assert parse.inside_path(text, "--workdir") == value


@pytest.mark.parametrize("argv", [(), ("",), ("a\0",), ("a", "\udcff"), ("a", "b" * (128 * 1024))])
def test_commands_that_are_refused(argv: tuple[str, ...]) -> None:
    assert refusal(lambda: parse.command(argv))


def test_the_environment_counts_towards_a_commands_size() -> None:
    parse.command(("a", "b" * 65536))
    assert refusal(lambda: parse.command(("a", "b" * 65536), [("C", "d" * 65536)]))


@given(st.text())
def test_no_text_crashes_a_parser(text: str) -> None:
    for act in (
        lambda: parse.name(text),
        lambda: parse.memory(text, MIB),
        lambda: parse.disk(text, MIB),
        lambda: parse.cpus(text, 2),
        lambda: parse.cpuset(text, {0, 1}),
        lambda: parse.env([text], {}),
        lambda: parse.env_file(text, {}, "--env-file"),
        lambda: parse.publish(text),
        lambda: parse.ready_path(text),
        lambda: parse.inside_path(text, "--workdir"),
        lambda: parse.command([text]),
    ):
        assert "\n" not in refusal(act)


@pytest.mark.parametrize("text", ["0\n", "\n1b ", " 999999t\n"])
def test_a_size_with_white_space_is_refused_in_one_line(text: str) -> None:
    for parser in (parse.memory, parse.disk):
        with pytest.raises(SpecError) as caught:
            parser(text, 1)
        assert "\n" not in str(caught.value)
