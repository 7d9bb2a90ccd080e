"""Flags of docker-run(1) that are not supported, each refused with the reason.

"No such option" would not tell users whether the flag has another name here. A few flags are accepted and ignored,
because what they ask for is always the case.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import click

from sandbox.errors import SpecError

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Refused(NamedTuple):
    """A flag that is refused: its names, whether it takes a value, the reason, and a hint."""

    names: tuple[str, ...]
    takes_value: bool
    reason: str
    hint: str


_WALL = "it would remove all isolation"
_TERMINAL = "a workload has no terminal and no input"
_NETWORK = "every sandbox is on the lab network, which has no route out"
_LATER = "use sandbox exec -it NAME sh, once it runs"

REFUSED = (
    Refused(("--privileged",), False, _WALL, "drop the flag"),
    Refused(("--cap-add",), True, "no level grants capabilities", "drop the flag"),
    Refused(("--cap-drop",), True, "all capabilities are dropped already", "drop the flag"),
    Refused(
        ("--security-opt",),
        True,
        "the protections of a level cannot be changed one by one",
        "choose a level: --isolation LEVEL",
    ),
    Refused(("--device",), True, _WALL, "drop the flag"),
    Refused(("--device-cgroup-rule",), True, _WALL, "drop the flag"),
    Refused(("--gpus",), True, "devices of the host are not available inside", "drop the flag"),
    Refused(("--user", "-u"), True, "every workload runs as the same unprivileged user", "drop the flag"),
    Refused(("--userns", "--pid", "--ipc", "--uts", "--cgroupns"), True, _WALL, "choose a level: --isolation LEVEL"),
    Refused(("--network", "--net"), True, _NETWORK, "publish a port on 127.0.0.1: -p HOST:CTR"),
    Refused(
        ("--ip", "--ip6", "--mac-address", "--network-alias", "--link"), True, _NETWORK, "sandbox ps shows its address"
    ),
    Refused(("--dns", "--add-host"), True, _NETWORK, "drop the flag"),
    Refused(("--publish-all", "-P"), False, "the root filesystem exposes no ports", "name the port: -p HOST:CTR"),
    Refused(("--restart",), True, "there is no daemon that could restart it", "use a service of your init system"),
    Refused(("--interactive", "-i"), False, _TERMINAL, _LATER),
    Refused(("--tty", "-t"), False, _TERMINAL, _LATER),
    Refused(("--attach", "-a"), True, _TERMINAL, _LATER),
    Refused(("--entrypoint",), True, "the root filesystem has none", "give the command after --"),
    Refused(
        ("--mount", "--volumes-from", "--volume-driver"), True, "only bind mounts are supported", "use -v HOST:CTR[:ro]"
    ),
    Refused(("--tmpfs",), True, "/tmp is the only writable directory", "set its size: --disk SIZE"),  # noqa: S108 - words
    Refused(("--shm-size",), True, "/dev/shm has 16 MiB at every level", "drop the flag"),  # noqa: S108 - words
    Refused(("--memory-swap", "--memory-swappiness"), True, "a sandbox has no swap", "drop the flag"),
    Refused(("--memory-reservation", "--kernel-memory"), True, "--memory is the only limit on memory", "use -m SIZE"),
    Refused(
        ("--oom-kill-disable",),
        False,
        "a sandbox at its memory limit is always ended",
        "set a larger --memory",
    ),
    Refused(("--oom-score-adj",), True, "a sandbox at its memory limit is always ended", "set a larger --memory"),
    Refused(
        ("--cpu-shares", "-c", "--cpu-period", "--cpu-quota", "--cpuset-mems"),
        True,
        "--cpus is the only limit on CPU time",
        "use --cpus N",
    ),
    Refused(
        ("--ulimit", "--sysctl", "--cgroup-parent"),
        True,
        "only limits that every level supports can be set",
        "use --cpus, --memory, --pids-limit or --disk",
    ),
    Refused(("--hostname",), True, "the host name of a sandbox is its name", "use --name NAME"),
    Refused(("--label", "-l", "--label-file"), True, "a sandbox has no labels", "use --name NAME"),
    Refused(("--log-driver", "--log-opt"), True, "the log cannot be configured", "read it with sandbox logs NAME"),
    Refused(("--pull", "--platform"), True, "there is one root filesystem, built on this host", "see sandbox images"),
    Refused(("--runtime",), True, "the level determines the runtime", "choose a level: --isolation LEVEL"),
    Refused(
        ("--stop-signal", "--stop-timeout"),
        True,
        "both are options of other commands",
        "use sandbox stop -t N, or sandbox kill -s",
    ),
    Refused(
        ("--health-cmd", "--health-interval"),
        True,
        "a sandbox is ready when it replies with status 200",
        "use --ready-path PATH",
    ),
    Refused(
        ("--cidfile", "--group-add", "--domainname", "--expose", "--storage-opt"),
        True,
        "there is no such setting",
        "see sandbox run --help",
    ),
)
ALWAYS = (("--read-only",), ("--init",), ("--no-healthcheck",))
"""Flags that are accepted and ignored, because every level behaves like that."""


def _refuse(flag: Refused) -> Callable[[click.Context, click.Parameter, object], None]:
    def refuse(ctx: click.Context, param: click.Parameter, value: object) -> None:
        if value and not ctx.resilient_parsing:
            raise SpecError(f"{'/'.join(param.opts)} is not supported: {flag.reason}", flag.hint)

    return refuse


def refuse_docker_flags(function: _Function) -> _Function:
    """Add the flags to a command as hidden options that raise an error with the reason.

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
    """Group names into options: each long name by itself, a short one with the long one before it."""
    groups: list[tuple[str, ...]] = []
    for name in names:
        if name.startswith("--"):
            groups.append((name,))
        else:
            groups[-1] = (*groups[-1], name)
    return groups
