"""What every test shares: markers that tie a test to what this host can do, and a count of what ran at which level.

`@pytest.mark.level("vm")`, `@pytest.mark.needs("docker.daemon")` and `@pytest.mark.needs("vagrant")` skip where the
host lacks the thing, and say why. SANDBOX_MUST_WORK, a comma list of levels, extras and capabilities, or `all`, turns
such a skip into a failure: a machine that is meant to do everything cannot pass by skipping.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Iterator
from functools import cache

import pytest

from sandbox import host
from sandbox.host import Missing
from sandbox.host.checks import EXTRAS
from sandbox.isolation import driver

MUST_WORK = "SANDBOX_MUST_WORK"
_PROPERTY = "isolation level"
_NO_LEVEL = "no level"

# Started in the background of a shell, or by nohup(1), a run inherits signals that are ignored, and so would every
# command that it starts: those that are sent one would never hear it.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGTERM):
    signal.signal(_number, signal.SIG_DFL)


@cache
def missing_for(level: str) -> tuple[Missing, ...]:
    """Return what the host lacks for a level or an extra; looked at once per run."""
    return tuple(host.missing_extra(level) if level in EXTRAS else driver(level).missing())


@cache
def missing(name: str) -> Missing | None:
    """Whether the host lacks a capability; looked at once per run."""
    return host.check(name)


def must_work() -> frozenset[str]:
    """What must not be skipped."""
    return frozenset(name.strip() for name in os.environ.get(MUST_WORK, "").split(",") if name.strip())


def lacks(item: pytest.Item) -> Iterator[tuple[str, Missing]]:
    """What a test needs and this host lacks, each with the name that SANDBOX_MUST_WORK knows it by."""
    for marker in item.iter_markers("level"):
        for name in marker.args:
            yield from ((name, found) for found in missing_for(name))
    for marker in item.iter_markers("needs"):
        for name in marker.args:
            if name in EXTRAS:
                yield from ((name, found) for found in missing_for(name))
                continue
            found = missing(name)
            if found is not None:
                yield name, found


def levels_of(item: pytest.Item) -> list[str]:
    """The levels that a test is marked with."""
    return [name for marker in item.iter_markers("level") for name in marker.args]


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for level in levels_of(item):
        item.user_properties.append((_PROPERTY, level))
    lacking = list(lacks(item))
    if not lacking:
        return
    required = must_work()
    text = "; ".join(f"{name}: {found.reason} (mend: {found.remedy})" for name, found in lacking)
    if "all" in required or any(name in required for name, _ in lacking):
        pytest.fail(f"{MUST_WORK} says that this works: {text}", pytrace=False)
    pytest.skip(text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print how many tests ran at which level."""
    counts: dict[str, Counter[str]] = {}
    for outcome, title in (("passed", "passed"), ("failed", "failed"), ("error", "failed"), ("skipped", "skipped")):
        for report in terminalreporter.stats.get(outcome, []):
            if not isinstance(report, pytest.TestReport):
                continue  # a module that was skipped or could not be collected
            levels = [value for name, value in report.user_properties if name == _PROPERTY]
            for level in dict.fromkeys(levels or [_NO_LEVEL]):
                counts.setdefault(str(level), Counter())[title] += 1
    if not counts:
        return
    terminalreporter.section("tests by isolation level")
    for level, count in sorted(counts.items()):
        said = ", ".join(f"{count[title]} {title}" for title in ("passed", "failed", "skipped") if count[title])
        terminalreporter.line(f"{level}: {said}")
