"""Examine the isolation of each level: a probe inside tries to get out, and a witness on the host decides."""

from __future__ import annotations

import hashlib
import secrets
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox.errors import SandboxError
from sandbox.lifecycle import start
from sandbox.measure.isolation import limits, observed, verdicts
from sandbox.measure.isolation.observed import Look, ProbeError, Push, Sleeper, Subject, clean
from sandbox.measure.isolation.verdicts import Finding
from sandbox.measure.isolation.witness import (
    Witness,
    family,
    find_by_word,
    forwarding_barred,
    has_default_route,
    host_facts,
    resident,
)
from sandbox.request import resolve
from sandbox.results import IsolationCheck, Verdict

if TYPE_CHECKING:
    from sandbox.isolation.base import ExecResult, Progress, Sandbox
    from sandbox.lifecycle.find import Running

PROBE_TIMEOUT = 60.0
"""Maximum seconds of one run of the probe; an emulated guest takes several."""
SLEEP = 1.5
"""Seconds of sleep of the process that the host looks for."""
SMALL_PIDS = 24
"""Limit of processes of the sandbox whose limits are tested. gVisor takes 8 MiB for each waiting process, so a higher
one would exceed the default memory limit first."""


def examine(levels: Sequence[str], workload: str, progress: Progress) -> list[IsolationCheck]:
    """Examine each level with two fresh sandboxes: the subject, and a sibling whose limits are tested at the end.

    A level that cannot be examined has UNKNOWN for every check, with the reason.

    Args:
        levels: levels that are available on this host.
        workload: the server that runs inside meanwhile.
        progress: called with each step.
    """
    rows: list[IsolationCheck] = []
    for level in levels:
        progress(f"isolation of {level}: starting two sandboxes")
        rows += _rows(level, _examine_level(level, workload, progress))
    return rows


def _rows(level: str, findings: dict[str, Finding]) -> list[IsolationCheck]:
    return [
        IsolationCheck(level, name, findings[name].verdict, findings[name].evidence, findings[name].witness)
        for name in verdicts.NAMES
    ]


def _examine_level(level: str, workload: str, progress: Progress) -> dict[str, Finding]:
    findings: dict[str, Finding] = {}
    trouble = "not examined"
    try:
        subject_spec = resolve.make(workload, level, resolve.Options()).spec
        sibling_spec = resolve.make(workload, level, resolve.Options(pids_limit=SMALL_PIDS)).spec
        with (
            start.running(subject_spec, progress=progress) as one,
            start.running(sibling_spec, progress=progress) as other,
        ):
            progress(f"isolation of {level}: running the probe")
            subject = observe(one, other)
            findings |= {name: check(subject) for name, check in verdicts.CHECKS.items()}
            progress(f"isolation of {level}: exceeding the limits")
            findings |= {name: verdicts.LIMITS[name](push) for name, push in _push(other.sandbox).items()}
    except (SandboxError, ProbeError, OSError) as error:
        trouble = clean(str(error))
        progress(f"isolation of {level}: {trouble}")
    missing = Finding(Verdict.UNKNOWN, "", trouble, "none: the level could not be examined")
    return {name: findings.get(name, missing) for name in verdicts.NAMES}


def _push(sandbox: Sandbox) -> dict[str, Push]:
    # Processes first, as exceeding the memory limit may end the whole sandbox.
    pids = limits.push_pids(sandbox)
    return {"pids limit": pids, "memory limit": limits.push_memory(sandbox)}


def observe(one: Running, other: Running) -> Subject:
    """Observe a sandbox from inside and from the host, without exceeding limits.

    Args:
        one: the sandbox that is examined.
        other: another sandbox of the same level, which the first tries to reach.

    Raises:
        SandboxError: a command could not be run inside.
        ProbeError: the probe gave no answer.
    """
    box = one.sandbox
    with Witness() as witness, ThreadPoolExecutor(max_workers=2) as pool, _sibling(other, pool) as listener:
        control = witness.check_listeners()
        asked, words = witness.errand(listener.target())
        user = observed.read_look(_run(box, observed.command("look", asked)).stdout)
        root = _look_as_root(box, asked | {"targets": {}})
        sleeper = _sleep_as_root(box, pool)
        pid = box.state().pid
        carrier = resident(pid) if pid is not None else None
        residents = [resident(member) for member in family(pid)] if pid is not None else []
        granted = box.limits()
        facts = host_facts(witness.disk_name)
        secrets_seen = witness.secrets(words, control)
        heard = listener.finish()
    return Subject(
        user=user,
        root=root,
        sleeper=sleeper,
        carrier=carrier,
        residents=tuple(member for member in residents if member is not None),
        default_route=has_default_route(pid) if pid is not None else None,
        forwarding_barred=forwarding_barred(),
        sibling_up=listener.control in heard,
        sibling_heard=listener.word in heard,
        cpus=granted.cpus if granted.cpus is not None else one.record.spec.cpus,
        memory=granted.memory if granted.memory is not None else one.record.spec.memory,
        secrets=secrets_seen,
        host=facts,
    )


def _run(box: Sandbox, argv: list[str], *, root: bool = False) -> ExecResult:
    try:
        return box.exec(argv, timeout=PROBE_TIMEOUT, root=root)
    except TimeoutError:
        raise ProbeError(f"the probe gave no answer within {PROBE_TIMEOUT:g} s") from None


def _look_as_root(box: Sandbox, asked: dict[str, object]) -> Look | None:
    """Run the probe as root. Returns None if that fails, as only the run as the workload's user is required."""
    try:
        return observed.read_look(_run(box, observed.command("look", asked), root=True).stdout)
    except (SandboxError, ProbeError):
        return None


def _sleep_as_root(box: Sandbox, pool: ThreadPoolExecutor) -> Sleeper:
    """Start a process inside as root and look for it on the host while it sleeps."""
    word, salt = "sbx-sleeper-" + secrets.token_hex(16), secrets.token_hex(8)
    argv = observed.command("sleep", {"seconds": SLEEP, "salt": salt}, word)
    running = pool.submit(_run, box, argv, root=True)
    found = None
    while found is None and not running.done():
        pid = find_by_word(word)
        found = resident(pid) if pid is not None else None
        time.sleep(0.02)
    try:
        output = running.result().stdout
    except (SandboxError, ProbeError):
        return Sleeper(ran=False, uid=None, found=found)
    proof = hashlib.sha256((salt + word).encode()).hexdigest()
    for answer in observed.answers(output):
        if answer.get("proof") == proof and type(answer.get("uid")) is int:
            return Sleeper(ran=True, uid=answer["uid"], found=found)
    return Sleeper(ran=False, uid=None, found=found)


@dataclass(slots=True)
class _SiblingListener:
    """A listener in the sibling, and the words that it is sent."""

    address: str
    port: int
    running: Future[ExecResult]
    control: str
    word: str
    end: str

    def target(self) -> list[object]:
        """Return the probe's instructions: where to connect, and the word to send."""
        return ["inet", self.address, self.port, self.word]

    def finish(self) -> frozenset[str]:
        """End the listener and return the words that it received."""
        with suppress(OSError):
            self.say(self.end)
        with suppress(SandboxError, ProbeError):
            for answer in observed.answers(self.running.result().stdout):
                heard = answer.get("heard")
                if isinstance(heard, list):
                    return frozenset(str(item) for item in heard)
        return frozenset()

    def say(self, word: str) -> None:
        """Send a word from the host, which can reach every sandbox."""
        with socket.create_connection((self.address, self.port), timeout=1.0) as peer:
            peer.sendall(word.encode() + b"\n")
            peer.recv(128)


@contextmanager
def _sibling(other: Running, pool: ThreadPoolExecutor) -> Iterator[_SiblingListener]:
    """Run a listener in a sandbox until the block ends or the time is up."""
    port = 20000 + secrets.randbelow(10000)
    words = [f"{kind}-{secrets.token_hex(8)}" for kind in ("control", "probe", "end")]
    errand = {"address": other.record.address, "port": port, "seconds": PROBE_TIMEOUT, "end": words[2]}
    running = pool.submit(_run, other.sandbox, observed.command("listen", errand))
    listener = _SiblingListener(other.record.address, port, running, *words)
    deadline = time.monotonic() + 20.0
    while time.monotonic() < deadline and not running.done():
        try:
            listener.say(listener.control)
            break
        except OSError:
            time.sleep(0.05)
    try:
        yield listener
    finally:
        if not running.done():
            with suppress(OSError):
                listener.say(listener.end)
