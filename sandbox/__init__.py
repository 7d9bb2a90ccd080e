"""Runs the same server behind every kind of wall, and measures what each wall costs and what it stops."""

__version__ = "0.1.0"
