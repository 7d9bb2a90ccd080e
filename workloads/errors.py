"""What can go wrong when a server starts; shown to a person as one line."""

from __future__ import annotations


class UsageError(Exception):
    """The command line is wrong, or the address cannot be listened on."""
