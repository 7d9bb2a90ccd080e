"""The error of a server that cannot start; it is shown as one line."""

from __future__ import annotations


class UsageError(Exception):
    """The command line is wrong, or the address cannot be listened on."""
