"""A sixth isolation level, made of this package and one line in the table of levels.

`pytest -p tests.sixth` runs tests with it, and `python -m tests.sixth ARG...` is the command `sandbox` with it.
"""

from __future__ import annotations

from sandbox.isolation import LEVELS

LEVEL = "sixth"

LEVELS[LEVEL] = "tests.sixth.driver:SixthIsolation"
