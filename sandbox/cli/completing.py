"""Completion of sandboxes by state, workloads, levels and signals in a shell, without importing an engine.

A completion that is not possible (without root, say) offers nothing and prints nothing, because the user is typing.
"""

from __future__ import annotations

from collections.abc import Callable

import click
from click.shell_completion import CompletionItem

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _sandboxes(wanted: Callable[[bool | None], bool], suffix: str = "") -> Completer:
    """Complete the names of sandboxes for which `wanted` returns true, given whether they run (None if unknown)."""

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
"""Completes sandboxes that run, or may: for `exec`, `stop` and `kill`."""

existing = _sandboxes(lambda _alive: True)
"""Completes all sandboxes: for `rm`, `logs` and `inspect`."""


def copy_operand(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete an operand of `cp`: SANDBOX: for a running one, or a file of the host."""
    if ":" in incomplete or incomplete.startswith(("/", ".")):
        return [CompletionItem(incomplete, type="file")]
    names = _sandboxes(lambda alive: alive is not False, ":")(ctx, param, incomplete)
    return [CompletionItem(incomplete, type="file"), *names]


def workload(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a workload, or a directory of an application."""
    from sandbox import workloads

    found = [CompletionItem(name) for name in workloads.names() if name.startswith(incomplete)]
    return found or [CompletionItem(incomplete, type="dir")]


def level(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete an isolation level, the last one in a list with commas."""
    from sandbox.isolation import LEVELS

    before, comma, last = incomplete.rpartition(",")
    return [CompletionItem(before + comma + name) for name in LEVELS if name.startswith(last)]


def signal_name(_ctx: click.Context, _param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Complete a signal's name, without SIG unless it was typed."""
    from sandbox.cli.signals import NAMES

    prefix = "SIG" if incomplete.upper().startswith("SIG") else ""
    wanted = incomplete.upper().removeprefix("SIG")
    return [CompletionItem(prefix + name) for name in NAMES if name.startswith(wanted)]
