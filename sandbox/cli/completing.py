"""What a shell completes: sandboxes by state, workloads, levels, signals. No engine is imported, nothing is changed.

A completion that cannot look (no root, say) offers nothing and says nothing: the user is in the middle of a line.
"""

from __future__ import annotations

from collections.abc import Callable

import click
from click.shell_completion import CompletionItem

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _sandboxes(wanted: Callable[[bool | None], bool], suffix: str = "") -> Completer:
    """Names of sandboxes whose liveness (None: unknown) is wanted, but those that the line has already."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        from sandbox.cli.state import is_running
        from sandbox.errors import SandboxError
        from sandbox.state.store import Store

        try:
            records = Store().records()
        except (SandboxError, OSError):
            return []
        given = ctx.params.get(param.name or "") or ()
        return [
            CompletionItem(record.name + suffix, help=f"{record.spec.workload} ({record.spec.isolation})")
            for record in records
            if record.name.startswith(incomplete) and record.name not in given and wanted(is_running(record))
        ]

    return complete


running = _sandboxes(lambda alive: alive is not False)
"""Sandboxes that run, or may: `exec`, `stop`, `kill`."""

existing = _sandboxes(lambda _alive: True)
"""All sandboxes: `rm`, `logs`, `inspect`."""


def copy_operand(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """SANDBOX: of running ones, and files of the host."""
    if ":" in incomplete or incomplete.startswith(("/", ".")):
        return [CompletionItem(incomplete, type="file")]
    names = _sandboxes(lambda alive: alive is not False, ":")(ctx, param, incomplete)
    return [CompletionItem(incomplete, type="file"), *names]


def workload(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Workloads, and directories of applications."""
    from sandbox import workloads

    found = [CompletionItem(name) for name in workloads.names() if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="dir")]


def level(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Isolation levels; the last one of a comma list."""
    from sandbox.isolation import LEVELS

    before, comma, last = incomplete.rpartition(",")
    return [CompletionItem(before + comma + name) for name in LEVELS if name.startswith(last)]


def signal_name(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Names of signals, without SIG, or with it where it was typed."""
    from sandbox.cli.signals import NAMES

    prefix = "SIG" if incomplete.upper().startswith("SIG") else ""
    wanted = incomplete.upper().removeprefix("SIG")
    return [CompletionItem(prefix + name) for name in NAMES if name.startswith(wanted)]
