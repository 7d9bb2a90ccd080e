"""What was observed: inside, as the probe said it, and outside, as the host's kernel says it. Data, no judgement."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from sandbox.measure.isolation import antagonist, inside
from sandbox.state import codec

MAX_OUTPUT = 256 * 1024
"""Bytes of a probe's output that are read. The sandbox is not trusted to be brief."""
MAX_TEXT = 120


class ProbeError(Exception):
    """The probe did not answer, or not in a way that can be read; one line that says so."""


DIED = "the sandbox died of it"
"""How a push ended whose sandbox was gone afterwards, as the host saw it."""


@dataclass(frozen=True, slots=True)
class Node:
    """A device node inside. `kind` is "b" or "c", `number` "major:minor"."""

    name: str
    kind: str
    number: str
    opened: bool


@dataclass(frozen=True, slots=True)
class Look:
    """What the probe saw inside, as one user. Texts are the sandbox's own words: clean them before they are shown.

    Attributes:
        uid: of the probe, inside.
        boot_id: of the kernel inside; None where it shows none.
        release: of the kernel, uname(2).
        status: capability sets, no_new_privs and seccomp, from /proc/self/status.
        namespaces: the links of /proc/self/ns.
        affinity: CPUs that the scheduler may use, sched_getaffinity(2).
        online: CPUs online, sysconf(3).
        memory: MemTotal in bytes.
        processes: how many are in /proc.
        marker: the host's secret word, if some process's arguments hold it.
        signalled: "sent", or why not.
        files: for each way to the host's file, its text or the error.
        nodes: below /dev.
        disk: for each way to the host's block device, the hash of what it read, or the error.
        reached: for each listener, "connected" or why not.
        routes: for each address family, "from <source>" or why there is none.
        calls: for each system call, "ok" or the error.
    """

    uid: int
    boot_id: str | None
    release: str
    status: dict[str, int]
    namespaces: dict[str, str]
    affinity: int
    online: int
    memory: int | None
    processes: int
    marker: str | None
    signalled: str
    files: dict[str, str]
    nodes: list[Node]
    disk: dict[str, str]
    reached: dict[str, str]
    routes: dict[str, str]
    calls: dict[str, str]


@dataclass(frozen=True, slots=True)
class Resident:
    """A process as the host's kernel shows it in /proc/<pid>.

    Attributes:
        pid: on the host.
        name: what it calls itself.
        uids: real, effective, saved and file-system user.
        status: capability sets, no_new_privs, seccomp.
        namespaces: name to link.
    """

    pid: int
    name: str
    uids: tuple[int, ...]
    status: dict[str, int]
    namespaces: dict[str, str]


@dataclass(frozen=True, slots=True)
class Sleeper:
    """A process that was started inside as root, with a random word in its arguments, while the host looked for it.

    Attributes:
        ran: it gave the answer that only that very process could compute.
        uid: its own word for its user.
        found: as the host's kernel shows it; None when the host has no such process.
    """

    ran: bool
    uid: int | None
    found: Resident | None


@dataclass(frozen=True, slots=True)
class Secrets:
    """What the host has hidden, and what its witnesses noticed of the sandbox.

    Attributes:
        marker: the word in the arguments of the host's marker process.
        token: the text of the host's file.
        disk: hash of what is on the host's block device; None where the host could make none.
        signals: signals that the marker process received from the sandbox.
        listeners: names of the host's listeners that answered the host itself.
        heard: those of them that heard this sandbox's word.
    """

    marker: str
    token: str
    disk: str | None
    signals: int
    listeners: frozenset[str]
    heard: frozenset[str]


@dataclass(frozen=True, slots=True)
class Host:
    """The host's own values, to compare with."""

    boot_id: str
    release: str
    cpus: int
    memory: int
    namespaces: dict[str, str]
    capabilities: int
    disk: str | None = None


@dataclass(frozen=True, slots=True)
class Push:
    """An attempt to pass a limit.

    Attributes:
        limit: as read back before the attempt; None where it could not be.
        asked: what the antagonist was to reach: above the limit.
        got: how far it says it came; None when it said nothing.
        ended: how it ended: "complete", an error's name, or "killed".
        refusals: by how much the counter of refusals rose; None where there is none to read.
        counter: which counter.
        peak: most that was ever charged, or None.
        sunk: by how much the host's free memory sank meanwhile, bytes; None where it does not matter.
    """

    limit: int | None
    asked: int
    got: int | None
    ended: str
    refusals: int | None
    counter: str
    peak: int | None = None
    sunk: int | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """Everything about one sandbox that the verdicts are made from.

    Attributes:
        user: seen inside as the workload's user.
        root: seen inside as root; None where that could not be done.
        sleeper: root's process, looked for on the host.
        carrier: the host's process that carries the sandbox: its init, gVisor's sentry, QEMU. None when unknown.
        residents: the sandbox's processes on the host, as far as they belong to the carrier.
        default_route: whether the carrier's network namespace has one, as the host's kernel shows it.
        forwarding_barred: whether the host drops what would be forwarded from the lab's bridge.
        sibling_up: the sibling's listener heard the host.
        sibling_heard: the sibling's listener heard this sandbox.
        cpus: granted.
        memory: granted, bytes.
    """

    user: Look
    root: Look | None
    sleeper: Sleeper
    carrier: Resident | None
    residents: tuple[Resident, ...]
    default_route: bool | None
    forwarding_barred: bool
    sibling_up: bool
    sibling_heard: bool
    cpus: float
    memory: int
    secrets: Secrets
    host: Host
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def looks(self) -> list[Look]:
        """Both looks, as far as there are two."""
        return [self.user] if self.root is None else [self.user, self.root]


def answers(output: bytes) -> Iterator[dict[str, Any]]:
    """The probe's lines of JSON in a command's output; other lines and broken ones are passed over."""
    for line in output[:MAX_OUTPUT].decode("utf-8", "replace").splitlines():
        if not line.startswith(inside.TAG):
            continue
        try:
            answer = codec.parse(line[len(inside.TAG) :])
        except (ValueError, RecursionError):
            continue
        if isinstance(answer, dict):
            yield answer


def read_look(output: bytes) -> Look:
    """The answer of the probe's mode `look`.

    Raises:
        ProbeError: there is none, or it is not of that form.
    """
    for answer in answers(output):
        try:
            look: Look = codec.decode(Look, answer, "probe")
        except codec.MismatchError as error:
            raise ProbeError(f"the probe's answer cannot be read: {error}") from None
        return look
    raise ProbeError("the probe gave no answer: " + clean(output[-MAX_TEXT:].decode("utf-8", "replace")))


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """Text from a sandbox made fit for a table: printable characters alone, one line, not long."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    shown = " ".join(shown.split())
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def command(mode: str, asked: dict[str, Any], *words: str) -> list[str]:
    """The command that runs the probe, or the antagonist, inside.

    -I and -S: none of the sandbox's own Python files has a say in it (python(1)).
    """
    return ["/usr/bin/python3", "-I", "-S", "-c", _packed(mode), mode, json.dumps(asked), *words]


@cache
def _packed(mode: str) -> str:
    """A program's text, packed: an SSH server may take a few thousand bytes of command only (dropbear: 9000)."""
    name = "antagonist.py" if mode in antagonist.MODES else "inside.py"
    text = files("sandbox.measure.isolation").joinpath(name).read_bytes()
    data = base64.b85encode(zlib.compress(text, 9)).decode("ascii")
    return f"import base64,zlib;exec(zlib.decompress(base64.b85decode('{data}')))"
