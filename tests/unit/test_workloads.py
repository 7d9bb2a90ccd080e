from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from sandbox import workloads as catalogue
from sandbox.cli.workloads import command
from sandbox.errors import NotFoundError, SpecError

MODELS = ["blocking", "callback", "coroutine", "eventloop", "fork", "reactor", "sequential", "thread"]


def test_names() -> None:
    assert catalogue.names() == MODELS


@pytest.mark.parametrize("name", MODELS)
def test_every_workload_describes_itself(name: str) -> None:
    workload = catalogue.describe(name)
    assert workload.name == name
    assert workload.summary
    assert "\n" not in workload.summary
    assert workload.section.startswith("2.")
    assert len(workload.picture.splitlines()) >= 4


def test_argv_listens_where_it_is_told() -> None:
    argv = catalogue.argv("reactor", host="198.18.2.1", port=8080)
    assert argv[0] == "/usr/bin/python3"
    assert argv[-5:] == ("reactor", "--host", "198.18.2.1", "--port", "8080")
    assert all(isinstance(word, str) for word in argv)


def test_unknown_workload() -> None:
    for ask in (lambda: catalogue.describe("nope"), lambda: catalogue.argv("nope", host="127.0.0.1", port=1)):
        with pytest.raises(NotFoundError, match="one of blocking, callback"):
            ask()


@pytest.mark.parametrize("port", [0, -1, 65536])
def test_port_out_of_range(port: int) -> None:
    with pytest.raises(SpecError):
        catalogue.argv("reactor", host="127.0.0.1", port=port)


def test_listing() -> None:
    table = CliRunner().invoke(command, ["ls"])
    assert table.exit_code == 0
    lines = table.output.splitlines()
    assert lines[0].split() == ["NAME", "SECTION", "SUMMARY"]
    assert [line.split()[0] for line in lines[1:]] == MODELS
    document = json.loads(CliRunner().invoke(command, ["ls", "--format", "json"]).output)
    assert [sorted(entry) for entry in document] == [["name", "picture", "section", "summary"]] * len(MODELS)


def test_showing() -> None:
    shown = CliRunner().invoke(command, ["show", "reactor"])
    assert shown.exit_code == 0
    assert "the cooks" in shown.output
    assert json.loads(CliRunner().invoke(command, ["show", "fork", "--format", "json"]).output)["section"] == "2.8.1"


def test_showing_what_is_not_there() -> None:
    result = CliRunner().invoke(command, ["show", "nope"])
    assert isinstance(result.exception, NotFoundError)
