"""Progress of a long run on stderr: one line that is updated on a terminal, otherwise a new line from time to time."""

from __future__ import annotations

import os
import shutil
import sys
import time

import click

from sandbox.cli.output import plain

SPARSE = 15.0
"""Seconds between two lines if stderr is not a terminal."""


class Watch:
    """Shows the progress of a comparison."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._head = ""
        self._shown = 0.0
        self._width = 0

    def step(self, done: int, total: int, what: str, remaining: float | None) -> None:
        """Show that a sample begins."""
        left = f", {duration(remaining)} left" if remaining is not None else ""
        self._head = f"[{done + 1}/{total}] {what}{left}"
        if self._live:
            self._draw(self._head)
        elif time.monotonic() - self._shown >= SPARSE:
            self._shown = time.monotonic()
            click.echo(plain(self._head), err=True)

    def detail(self, what: str) -> None:
        """Show the current step within the sample."""
        if self._live:
            self._draw(f"{self._head}: {what}" if self._head else what)

    def note(self, text: str) -> None:
        """Print a message that remains visible."""
        self.clear()
        click.echo(plain(text), err=True)

    def clear(self) -> None:
        """Erase the line that is being updated."""
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0

    def _draw(self, text: str) -> None:
        shown = plain(text)[: max(shutil.get_terminal_size().columns - 1, 10)]
        sys.stderr.write("\r" + shown.ljust(self._width))
        sys.stderr.flush()
        self._width = len(shown)


def duration(seconds: float) -> str:
    """Format a duration, such as "40 s" or "3 min"."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
