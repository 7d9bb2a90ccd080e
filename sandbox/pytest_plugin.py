"""Fixtures for pytest: sandboxes for the time of a test, or of a session.

    def test_my_server(sandbox):
        box = sandbox("./my-app")
        assert urllib.request.urlopen(box.url).status == 200

`--sandbox-isolation LEVEL` says behind which wall, where the test does not. A level that the host lacks skips the test
with the reason; where SANDBOX_MUST_WORK names it (a comma list of levels, or `all`), it fails. docs/api.md has more.
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
    """What the fixtures give: starts a sandbox that is removed when the fixture ends."""

    def __call__(self, target: Target = "reactor", *, isolation: str | None = None, **options: Any) -> Sandbox:
        """Start a sandbox, as `sandbox.run` does.

        Args:
            target: a workload, a command as a list, or a directory with a `sandbox.toml`.
            isolation: a level; by default what `--sandbox-isolation` says.
            options: as of `sandbox.run`.

        Raises:
            SandboxError: of the kind that fits.
        """


_made: pytest.StashKey[list[Sandbox]] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--sandbox-isolation`."""
    group = parser.getgroup("sandbox", "sandboxes")
    group.addoption(
        "--sandbox-isolation",
        metavar="LEVEL",
        help="isolation level of sandboxes whose test names none (default: that of sandbox.run)",
    )


@pytest.fixture
def sandbox(request: pytest.FixtureRequest) -> Iterator[Factory]:
    """A factory of sandboxes that are removed at the test's end: `box = sandbox("reactor")`."""
    yield from _factory(request)


@pytest.fixture(scope="session")
def sandbox_session(request: pytest.FixtureRequest) -> Iterator[Factory]:
    """A factory of sandboxes that are removed at the session's end, for those that several tests share."""
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
        return f"not to be had: {error}"
