"""The observations, by the probe inside and by the host's kernel outside. Data, without verdicts."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from sandbox.measure.isolation import inside, stressor
from sandbox.state import codec

MAX_OUTPUT = 256 * 1024
"""Maximum bytes of a probe's output that are read, as the sandbox is not trusted."""
MAX_TEXT = 120


class ProbeError(Exception):
    """The probe gave no answer, or a malformed one. The message is one line."""


DIED = "the sandbox died of it"
"""The end of an attempt after which the sandbox was gone, as seen from the host."""


@dataclass(frozen=True, slots=True)
class Node:
    """A device node inside. `kind` is "b" or "c", `number` "major:minor"."""

    name: str
    kind: str
    number: str
    opened: bool


@dataclass(frozen=True, slots=True)
class Look:
    """The observations of the probe, as one user. Texts come from the sandbox: `clean` them before they are shown.

    Attributes:
        uid: user id of the probe, inside.
        boot_id: boot id of the kernel inside; None if it shows none.
        release: release of the kernel, uname(2).
        status: capability sets, no_new_privs and seccomp, from /proc/self/status.
        namespaces: the links of /proc/self/ns.
        affinity: number of CPUs that the scheduler may use, sched_getaffinity(2).
        online: number of CPUs online, sysconf(3).
        memory: MemTotal in bytes.
        processes: number of processes in /proc.
        marker: the host's secret word, if a process has it among its arguments.
        signalled: "sent", or the error.
        files: for each way to the host's file, its text or the error.
        nodes: device nodes below /dev.
        disk: for each way to the host's block device, the hash of what it read, or the error.
        reached: for each listener, "connected" or the error.
        routes: for each address family, "from <source>" or the error.
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
        pid: pid on the host.
        name: name of the process.
        uids: real, effective, saved and file-system user id.
        status: capability sets, no_new_privs, seccomp.
        namespaces: links of the namespaces by name.
    """

    pid: int
    name: str
    uids: tuple[int, ...]
    status: dict[str, int]
    namespaces: dict[str, str]


@dataclass(frozen=True, slots=True)
class Sleeper:
    """A process that was started inside as root with a random word in its arguments, and looked for on the host.

    Attributes:
        ran: True if it gave the answer that only this process could compute.
        uid: its user id, as it reports.
        found: the process as the host's kernel shows it; None if the host has no such process.
    """

    ran: bool
    uid: int | None
    found: Resident | None


@dataclass(frozen=True, slots=True)
class Secrets:
    """The secrets of the host that a sandbox might find, and what the witness noticed of the sandbox.

    Attributes:
        marker: the word in the arguments of the host's marker process.
        token: the text of the host's file.
        disk: hash of the content of the host's block device; None if the host could not create one.
        signals: number of signals that the marker process received from the sandbox.
        listeners: names of the host's listeners that the host itself could reach.
        heard: names of those listeners that received this sandbox's word.
    """

    marker: str
    token: str
    disk: str | None
    signals: int
    listeners: frozenset[str]
    heard: frozenset[str]


@dataclass(frozen=True, slots=True)
class Host:
    """The host's own values, for comparison."""

    boot_id: str
    release: str
    cpus: int
    memory: int
    namespaces: dict[str, str]
    capabilities: int
    disk: str | None = None


@dataclass(frozen=True, slots=True)
class Push:
    """An attempt to exceed a limit.

    Attributes:
        limit: the limit, read back before the attempt; None if it could not be read.
        asked: the amount that the stressor tried to reach, above the limit.
        got: the amount that it reports; None if it reported nothing.
        ended: how it ended: "complete", the name of an error, or "killed".
        refusals: increase of the counter of refusals; None if there is no counter.
        counter: description of the counter.
        peak: maximum that was charged, or None.
        sunk: decrease of the host's free memory in bytes; None if it does not matter.
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
    """All observations of one sandbox, from which the verdicts follow.

    Attributes:
        user: observations inside as the workload's user.
        root: observations inside as root; None if there are none.
        sleeper: root's process, looked for on the host.
        carrier: the host's process that runs the sandbox: its init, gVisor's sentry or QEMU; None if unknown.
        residents: the carrier and its descendants on the host.
        default_route: whether the carrier's network namespace has a default route, by the host's kernel.
        forwarding_barred: whether the host drops packets that would be forwarded from the lab's bridge.
        sibling_up: True if the sibling's listener received the host's word.
        sibling_heard: True if the sibling's listener received this sandbox's word.
        cpus: the limit of CPUs.
        memory: the memory limit in bytes.
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
        """Return the observations of the user, and those of root if there are any."""
        return [self.user] if self.root is None else [self.user, self.root]


def answers(output: bytes) -> Iterator[dict[str, Any]]:
    """Yield the probe's lines of JSON in a command's output; other and malformed lines are skipped."""
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
    """Parse the answer of the probe's mode `look`.

    Raises:
        ProbeError: there is no answer, or it is malformed.
    """
    for answer in answers(output):
        try:
            look: Look = codec.decode(Look, answer, "probe")
        except codec.MismatchError as error:
            raise ProbeError(f"the probe's answer cannot be read: {error}") from None
        return look
    raise ProbeError("the probe gave no answer: " + clean(output[-MAX_TEXT:].decode("utf-8", "replace")))


def clean(text: str, limit: int = MAX_TEXT) -> str:
    """Make text from a sandbox safe for a table: one line of printable characters, cut at `limit`."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    shown = " ".join(shown.split())
    return shown if len(shown) <= limit else shown[: limit - 1] + "…"


def command(mode: str, asked: dict[str, Any], *words: str) -> list[str]:
    """Return the command that runs the probe, or the stressor, inside.

    -I and -S keep the sandbox's own Python files from affecting it (python(1)).
    """
    return ["/usr/bin/python3", "-I", "-S", "-c", _packed(mode), mode, json.dumps(asked), *words]


@cache
def _packed(mode: str) -> str:
    """Compress a program's source, as an SSH server may limit a command to a few thousand bytes (dropbear: 9000)."""
    name = "stressor.py" if mode in stressor.MODES else "inside.py"
    text = files("sandbox.measure.isolation").joinpath(name).read_bytes()
    data = base64.b85encode(zlib.compress(text, 9)).decode("ascii")
    return f"import base64,zlib;exec(zlib.decompress(base64.b85decode('{data}')))"
