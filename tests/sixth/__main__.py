"""The command line, with the sixth level."""

from __future__ import annotations

from sandbox.cli import main

main()
