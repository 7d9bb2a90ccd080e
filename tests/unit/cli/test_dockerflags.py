"""Docker's flags that are not supported: each is refused with a reason, and none shadows a supported one."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from sandbox.cli.dockerflags import ALWAYS, REFUSED
from sandbox.cli.run import command
from sandbox.errors import SpecError

FLAGS = [(name, flag.takes_value) for flag in REFUSED for name in flag.names]


@pytest.mark.parametrize(("name", "takes_value"), FLAGS)
def test_refused_with_a_reason(name: str, takes_value: bool) -> None:
    with pytest.raises(SpecError, match="is not supported: ") as caught:
        command.main([name, *(["x"] if takes_value else []), "reactor"], standalone_mode=False)
    assert name in caught.value.message
    assert caught.value.hint
    assert str(caught.value).isprintable()


def test_no_flag_stands_for_two_things() -> None:
    names = [name for parameter in command.params if isinstance(parameter, click.Option) for name in parameter.opts]
    assert len(names) == len(set(names))


def test_help_does_not_list_them() -> None:
    shown = CliRunner().invoke(command, ["--help"]).output.partition("Options:")[2]
    listed = {word.strip(",") for line in shown.splitlines() for word in line.split() if word.startswith("-")}
    assert not listed & {name for name, _ in FLAGS}
    assert not listed & {name for names in ALWAYS for name in names}
    assert {"--port", "-p", "-v", "--disk", "--isolation"} <= listed
