"""How many system calls pass: by the level's list, by Docker's default profile, and as seen from inside both.

    python -m tests.integration.hardening.count

prints it. Docker's list is the one that the installed engine gives its runtime for a container without capabilities
(linux.seccomp of the OCI bundle). Both filters are then asked by calling every number from inside, with the filter and
without. A call is seen to pass if it comes back with anything but EPERM or ENOSYS, and seen to be refused if it comes
back with one of these only when the filter is there. The rest answer the same either way.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from sandbox import images
from sandbox.spec import MIB, SANDBOX_UID
from tests.integration.hardening import numbers, switches
from tests.verbs import Manager
from tools.seccomp import compiler

NUMBERS = compiler.MACHINES[os.uname().machine][1]
NAMES = {number: name for name, number in NUMBERS.items()}
LAST = max(NAMES)
REFUSALS = ("EPERM", "ENOSYS")
BUNDLES = "/run/docker/containerd/daemon/io.containerd.runtime.v2.task/moby"
ARGUMENTS = {
    "futex": [-1, 1],  # FUTEX_WAKE
    "clone": [0x10000],  # a thread without shared memory: EINVAL
    "ioctl": [-1, -1],
    "kill": [0, 0],
    "modify_ldt": [0, 0, 0],
    "personality": [0xFFFFFFFF],
    "socket": [1, -1, 0],
    "socketpair": [1, -1, 0, 0],
}
"""Where a filter looks at arguments: ones that pass. -1 is no descriptor, no address, no process and no flag."""


@dataclass(frozen=True, slots=True)
class Count:
    """What one filter lets through.

    Attributes:
        title: whose it is.
        listed: names that pass by its list, for at least some arguments.
        passed: names that were seen to pass.
        refused: names that were seen to be refused by the filter.
    """

    title: str
    listed: frozenset[str]
    passed: frozenset[str]
    refused: frozenset[str]

    @property
    def undecided(self) -> frozenset[str]:
        """Calls that give the same refusal without the filter: they need a privilege, or the kernel lacks them."""
        return frozenset(NUMBERS) - self.passed - self.refused


def judge(title: str, listed: frozenset[str], filtered: list[str], bare: list[str]) -> Count:
    """Compare the answers with the filter and without."""
    passed, refused = set(), set()
    for number, name in NAMES.items():
        if filtered[number] not in REFUSALS:
            passed.add(name)
        elif bare[number] != filtered[number]:
            refused.add(name)
    return Count(title, listed, frozenset(passed), frozenset(refused))


def command() -> list[str]:
    """What runs inside."""
    asked = {"last": LAST, "arguments": {NUMBERS[name]: arguments for name, arguments in ARGUMENTS.items()}}
    text = Path(numbers.__file__).read_text(encoding="utf-8")
    return ["/usr/bin/python3", "-I", "-S", "-c", text, json.dumps(asked)]


def namespace() -> Count:
    """The filter of level `namespace`."""
    return judge("namespace", compiler.names(os.uname().machine), _namespace(None), _namespace(switches.no_filter))


def _namespace(switch: switches.Switch | None) -> list[str]:
    manager = Manager()
    spec = replace(manager.make_spec("reactor", "namespace"), port=None, argv=("sleep", "600"), memory=64 * MIB)
    with pytest.MonkeyPatch.context() as patch, manager.running(spec) as running:
        switches.apply(patch, [switch])
        done = running.sandbox.exec(command(), timeout=300)
    found: list[str] = json.loads(done.stdout)
    return found


def docker() -> Count:
    """The engine's default profile, for a user without capabilities."""
    with _container() as ident:
        listed = profile(Path(f"{BUNDLES}/{ident}/config.json"))
        filtered = _answers(ident)
    with _container("--security-opt", "seccomp=unconfined") as ident:
        bare = _answers(ident)
    return judge("docker", listed, filtered, bare)


@contextmanager
def _container(*options: str) -> Iterator[str]:
    image = images.ensure(images.Form.DOCKER, print).reference
    walls = ["--network=none", "--cap-drop=ALL", "--security-opt=no-new-privileges", f"--user={SANDBOX_UID}"]
    ident = _docker("run", "-d", "--rm", "--memory=64m", *walls, *options, str(image), "sleep", "600").strip()
    try:
        yield ident
    finally:
        _docker("rm", "-f", ident)


def _docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True, timeout=300).stdout


def _answers(ident: str) -> list[str]:
    found: list[str] = json.loads(_docker("exec", ident, *command()))
    return found


def profile(path: Path) -> frozenset[str]:
    """Names that a bundle's filter lets through for at least some arguments, as far as this machine has them."""
    filters: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))["linux"]["seccomp"]
    found: set[str] = set()
    for rule in filters["syscalls"]:
        if rule["action"] == "SCMP_ACT_ALLOW":
            found.update(rule["names"])
    return frozenset(found & NUMBERS.keys())


def lines(counts: Iterable[Count]) -> Iterator[str]:
    """For people."""
    ours, *others = counts
    for count in (ours, *others):
        yield (
            f"{count.title}: {len(count.listed)} of {len(NUMBERS)} calls pass by its list;"
            f" seen to pass {len(count.passed)}, seen refused {len(count.refused)}, the same either way"
            f" {len(count.undecided)}"
        )
    for count in others:
        yield f"pass at {count.title} alone: {' '.join(sorted(count.listed - ours.listed)) or 'none'}"
        yield f"pass at {ours.title} alone: {' '.join(sorted(ours.listed - count.listed)) or 'none'}"


if __name__ == "__main__":
    for line in lines((namespace(), docker())):
        print(line)
