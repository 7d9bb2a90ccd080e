"""Flags of docker-run(1) that people type and that mean nothing here, each refused with the reason why.

"No such option" would leave them guessing whether it has another name. Two are always so, and are taken as said.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import click

from sandbox.errors import SpecError

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Refused(NamedTuple):
    """A flag: its names, whether a value follows it, why it is not had, and what is instead."""

    names: tuple[str, ...]
    takes_value: bool
    reason: str
    hint: str


_WALL = "a wall with that hole in it would be none"
_TERMINAL = "a workload has no terminal and no input"
_NETWORK = "every sandbox is on the lab network, which has no way out"
_LATER = "sandbox exec -it NAME sh, once it runs"

REFUSED = (
    Refused(("--privileged",), False, _WALL, "leave it out"),
    Refused(("--cap-add",), True, "no level gives capabilities", "leave it out"),
    Refused(("--cap-drop",), True, "every capability is dropped already", "leave it out"),
    Refused(("--security-opt",), True, "its walls are not taken down one by one", "--isolation LEVEL"),
    Refused(("--device",), True, _WALL, "leave it out"),
    Refused(("--device-cgroup-rule",), True, _WALL, "leave it out"),
    Refused(("--gpus",), True, "no device of the host is passed on", "leave it out"),
    Refused(("--user", "-u"), True, "every workload runs as the same user inside, who is not root", "leave it out"),
    Refused(("--userns", "--pid", "--ipc", "--uts", "--cgroupns"), True, _WALL, "--isolation LEVEL"),
    Refused(("--network", "--net"), True, _NETWORK, "-p HOST:CTR publishes a port on 127.0.0.1"),
    Refused(("--ip", "--ip6", "--mac-address", "--network-alias", "--link"), True, _NETWORK, "sandbox ps says where"),
    Refused(("--dns", "--add-host"), True, _NETWORK, "leave it out"),
    Refused(("--publish-all", "-P"), False, "an image here exposes no ports", "-p HOST:CTR"),
    Refused(("--restart",), True, "there is no daemon that would start it again", "a service of your init system"),
    Refused(("--interactive", "-i"), False, _TERMINAL, _LATER),
    Refused(("--tty", "-t"), False, _TERMINAL, _LATER),
    Refused(("--attach", "-a"), True, _TERMINAL, _LATER),
    Refused(("--entrypoint",), True, "the root filesystem has none", "the command behind --"),
    Refused(("--mount", "--volumes-from", "--volume-driver"), True, "there are bind mounts only", "-v HOST:CTR[:ro]"),
    Refused(("--tmpfs",), True, "/tmp is the one directory that can be written", "--disk SIZE sets its size"),  # noqa: S108 - words
    Refused(("--shm-size",), True, "/dev/shm has 16 MiB at every level", "leave it out"),  # noqa: S108 - words
    Refused(("--memory-swap", "--memory-swappiness"), True, "swap is never added to --memory", "leave it out"),
    Refused(("--memory-reservation", "--kernel-memory"), True, "--memory is the one limit on memory", "-m SIZE"),
    Refused(("--oom-kill-disable",), False, "a sandbox at its limit is ended, not the host", "a larger --memory"),
    Refused(("--oom-score-adj",), True, "a sandbox at its limit is ended, not the host", "a larger --memory"),
    Refused(("--cpu-shares", "-c", "--cpu-period", "--cpu-quota", "--cpuset-mems"), True, "not had", "--cpus N"),
    Refused(("--ulimit", "--sysctl", "--cgroup-parent"), True, "limits are the same at every level", "--pids-limit N"),
    Refused(("--hostname",), True, "a sandbox's host name is its name", "--name NAME"),
    Refused(("--label", "-l", "--label-file"), True, "sandboxes have names and ids alone", "--name NAME"),
    Refused(("--log-driver", "--log-opt"), True, "the level keeps the log", "sandbox logs NAME"),
    Refused(("--pull", "--platform"), True, "no image is fetched: there is one root filesystem", "sandbox images"),
    Refused(("--runtime",), True, "the level says what runs it", "--isolation LEVEL"),
    Refused(("--stop-signal", "--stop-timeout"), True, "said when it is stopped", "sandbox stop -t N, sandbox kill -s"),
    Refused(("--health-cmd", "--health-interval"), True, "readiness is a reply with status 200", "--ready-path PATH"),
    Refused(
        ("--cidfile", "--group-add", "--domainname", "--expose", "--storage-opt"), True, "not had", "sandbox run -h"
    ),
)
ALWAYS = (("--read-only",), ("--init",), ("--no-healthcheck",))
"""Taken in silence: so it is at every level, whatever is said."""


def _refuse(flag: Refused) -> Callable[[click.Context, click.Parameter, object], None]:
    def refuse(ctx: click.Context, param: click.Parameter, value: object) -> None:
        if value and not ctx.resilient_parsing:
            raise SpecError(f"{'/'.join(param.opts)} is not offered: {flag.reason}", flag.hint)

    return refuse


def refuse_docker_flags(function: _Function) -> _Function:
    """Give a command hidden options that say why they are not had.

    Raises:
        SpecError: when one is used.
    """
    for flag in REFUSED:
        groups = _groups(flag.names)
        for names in groups:
            decorate = click.option(
                *names,
                is_flag=not flag.takes_value,
                multiple=flag.takes_value,
                hidden=True,
                expose_value=False,
                is_eager=True,
                callback=_refuse(flag),
            )
            function = decorate(function)
    for names in ALWAYS:
        function = click.option(*names, is_flag=True, hidden=True, expose_value=False)(function)
    return function


def _groups(names: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Long names each on their own, a short one with the long one before it."""
    groups: list[tuple[str, ...]] = []
    for name in names:
        if name.startswith("--"):
            groups.append((name,))
        else:
            groups[-1] = (*groups[-1], name)
    return groups
