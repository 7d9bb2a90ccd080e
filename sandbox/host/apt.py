"""Install packages with apt-get, without prompts and without starting services."""

from __future__ import annotations

import os
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sandbox.errors import EngineError
from sandbox.host.distribution import systemd

POLICY = Path("/usr/sbin/policy-rc.d")
_POLICY_TEXT = (
    "#!/bin/sh\n# Written by sandbox doctor for the time of one installation: no service is started.\nexit 101\n"
)
_ENVIRONMENT = {
    "DEBIAN_FRONTEND": "noninteractive",
    "NEEDRESTART_SUSPEND": "1",  # on Ubuntu, needrestart prompts at the end of an installation
    "LC_ALL": "C.UTF-8",
}
_OPTIONS = (
    "-y",
    "--no-install-recommends",
    "-o",
    "DPkg::Lock::Timeout=600",
    "-o",
    "Dpkg::Use-Pty=0",
    "-o",
    "Dpkg::Options::=--force-confdef",
    "-o",
    "Dpkg::Options::=--force-confold",
)
_SHOWN = ("Setting up ", "E: ", "dpkg: error")
_KEPT = 20

Progress = Callable[[str], None]


@contextmanager
def no_service_starts() -> Iterator[None]:
    """Keep packages from starting their daemons on a host without systemd.

    Nothing would manage such a daemon, and we could not stop it. invoke-rc.d(8) runs /usr/sbin/policy-rc.d, and exit
    code 101 means no. An existing one is the administrator's decision, and is kept.
    """
    if systemd() or not _ours_or_absent():
        yield
        return
    POLICY.write_text(_POLICY_TEXT, encoding="ascii")
    POLICY.chmod(0o755)
    try:
        yield
    finally:
        POLICY.unlink(missing_ok=True)


def _ours_or_absent() -> bool:
    try:
        return POLICY.read_text(encoding="utf-8", errors="replace") == _POLICY_TEXT  # left by a killed installation
    except FileNotFoundError:
        return True


def available(packages: Sequence[str]) -> list[str]:
    """Return those of the packages that this release of the distribution has."""
    found = []
    for package in packages:
        done = subprocess.run(
            ["apt-cache", "policy", package],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **_ENVIRONMENT},
        )
        if any("Candidate:" in line and "(none)" not in line for line in done.stdout.splitlines()):
            found.append(package)
    return found


def update(progress: Progress) -> None:
    """Fetch the package lists.

    Raises:
        EngineError: apt-get failed; the message has its error.
    """
    progress("apt-get update")
    _apt(["update"], progress)


def install(packages: Sequence[str], progress: Progress) -> None:
    """Install packages.

    Raises:
        EngineError: apt-get failed; the message has its error.
    """
    progress(f"apt-get install {' '.join(packages)}")
    with no_service_starts():
        _apt(["install", *packages], progress)


def _apt(arguments: Sequence[str], progress: Progress) -> None:
    last: deque[str] = deque(maxlen=_KEPT)
    with subprocess.Popen(
        ["apt-get", *_OPTIONS, *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env={**os.environ, **_ENVIRONMENT},
    ) as process:
        for line in process.stdout or ():
            last.append(line.rstrip())
            if line.startswith(_SHOWN):
                progress(line.rstrip())
    if process.returncode != 0:
        errors = [line for line in last if line.startswith("E: ")] or [line for line in last if line]
        words = errors[0].removeprefix("E: ") if errors else f"exit code {process.returncode}"
        raise EngineError(f"apt-get {arguments[0]} failed: {words}", f"try: apt-get {' '.join(arguments)}")
