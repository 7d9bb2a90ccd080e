"""Fixtures for pytest that start sandboxes, and remove them at the end of the test or session.

    def test_my_server(sandbox):
        box = sandbox("./my-app")
        assert urllib.request.urlopen(box.url).status == 200

`--sandbox-isolation LEVEL` sets the level for tests that do not choose one. If the level is not available on this host,
the test is skipped, or fails if SANDBOX_MUST_WORK (a comma-separated list, or `all`) names the level. See docs/api.md.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from sandbox.api import Sandbox
    from sandbox.request.resolve import Target

MUST_WORK = "SANDBOX_MUST_WORK"
_LOG_LINES = 40


class Factory(Protocol):
    """A function that starts a sandbox, which is removed when the fixture ends."""

    def __call__(self, target: Target = "reactor", *, isolation: str | None = None, **options: Any) -> Sandbox:
        """Start a sandbox, as `sandbox.run` does.

        Args:
            target: a workload, a command as a list, or a directory with a `sandbox.toml`.
            isolation: the level; by default that of `--sandbox-isolation`.
            options: as for `sandbox.run`.

        Raises:
            SandboxError: the start failed.
        """


_made: pytest.StashKey[list[Sandbox]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option `--sandbox-isolation`."""
    group = parser.getgroup("sandbox", "sandboxes")
    group.addoption(
        "--sandbox-isolation",
        metavar="LEVEL",
        help="isolation level for tests that do not choose one (default: that of sandbox.run)",
    )


@pytest.fixture
def sandbox(request: pytest.FixtureRequest) -> Iterator[Factory]:
    """Start sandboxes that are removed at the end of the test: `box = sandbox("reactor")`."""
    yield from _factory(request)


@pytest.fixture(scope="session")
def sandbox_session(request: pytest.FixtureRequest) -> Iterator[Factory]:
    """Start sandboxes that several tests share, and that are removed at the end of the session."""
    yield from _factory(request)


def _factory(request: pytest.FixtureRequest) -> Iterator[Factory]:
    default = request.config.getoption("--sandbox-isolation")
    made = request.node.stash.setdefault(_made, [])
    with ExitStack() as stack:

        def start(target: Target = "reactor", *, isolation: str | None = None, **options: Any) -> Sandbox:
            from sandbox import api
            from sandbox.errors import UnavailableError
            from sandbox.isolation import DEFAULT

            level = isolation or default or DEFAULT
            try:
                box = api.run(target, isolation=level, **options)
            except UnavailableError as error:
                required = {name.strip() for name in os.environ.get(MUST_WORK, "").split(",")}
                if required & {level, "all"}:
                    pytest.fail(f"{MUST_WORK} says that {level} works: {error}", pytrace=False)
                pytest.skip(str(error))
            stack.callback(box.remove, force=True)
            made.append(box)
            return box

        yield start


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the end of each sandbox's log with a test that failed."""
    report = yield
    if report.when == "call" and report.failed:
        for box in item.stash.get(_made, []):
            report.sections.append((f"sandbox {box.name} ({box.isolation}) log", _log_of(box)))
    return report


def _log_of(box: Sandbox) -> str:
    from sandbox.errors import SandboxError

    try:
        return box.logs(tail=_LOG_LINES).decode("utf-8", "replace")
    except SandboxError as error:
        return f"the log cannot be read: {error}"
