"""The result document of a comparison, which `sandbox compare` writes and `sandbox report` reads.

It is one JSON object with all raw samples. The dataclasses are its schema: loading checks each key and type against
them, and refuses what is missing, unknown, of another type, or not a finite number. Units are in the names:
`_s` seconds, `_bytes` bytes, `_per_s` per second. Times of day are UTC, RFC 3339.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from sandbox.errors import SandboxError
from sandbox.state import codec

FORMAT = "sandbox-comparison"
VERSION = 1
MAX_BYTES = 64 * 1024 * 1024
"""Bytes. A thousand sandboxes at five levels make about 5 MiB; a file near this limit is something else."""

PHASES = ("prepare", "create", "boot", "start", "first_reply")
"""The phases of a start, in order, with the names of `sandbox.phases.Phase`."""

PERCENTILES = ("p50", "p90", "p99", "p99.9", "max")
"""Keys of a latency distribution, in order."""


class ResultsError(SandboxError):
    """A result document cannot be read or written, or has an unknown version."""


class Status(StrEnum):
    """The status of a document: incomplete until its run has finished."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"


class Verdict(StrEnum):
    """The conclusion of an isolation check, from evidence observed on the host.

    HELD and NOT HELD are for limits that were exceeded on purpose. ISOLATED, PARTIAL and SHARED say whether a resource
    of the host is out of reach from inside. UNKNOWN means that there is no evidence either way.
    """

    ISOLATED = "ISOLATED"
    PARTIAL = "PARTIAL"
    SHARED = "SHARED"
    HELD = "HELD"
    NOT_HELD = "NOT HELD"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class IsolationCheck:
    """One isolation check at one level.

    Attributes:
        level: the isolation level.
        check: what was checked, such as "kernel" or "memory limit"; the same names at every level.
        verdict: the conclusion.
        evidence: what was observed inside and outside, by name.
        witness: one line that says how the verdict was reached on the host.
    """

    level: str
    check: str
    verdict: Verdict
    evidence: dict[str, str]
    witness: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median with its 95 % confidence interval, over `n` sandboxes. No interval (None) if n is 1."""

    median: float
    low: float | None
    high: float | None
    n: int

    @property
    def relative_width(self) -> float | None:
        """The width of the interval as a fraction of the median; None if there is no interval."""
        if self.low is None or self.high is None or self.median <= 0:
            return None
        return (self.high - self.low) / self.median


@dataclass(frozen=True, slots=True)
class Load:
    """The figures of one load test of one sandbox.

    Attributes:
        requests: number of requests answered, with any status.
        duration_s: duration as the generator measured it.
        requests_per_s: requests ÷ duration_s.
        received_bytes: bytes of headers and bodies.
        latency_s: latency by PERCENTILES.
        errors: number by kind: connect, read, write, timeout, status (any other than 2xx or 3xx).
    """

    requests: int
    duration_s: float
    requests_per_s: float
    received_bytes: int
    latency_s: dict[str, float]
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """The figures of one fresh sandbox.

    Attributes:
        level: the isolation level.
        round: number of the round; 0 is the warm-up, which is not counted.
        position: its position in the round, from 0.
        started: time of day.
        phases_s: duration of each completed phase.
        startup_s: from the begin of the first phase to the first correct reply; None if there was none.
        load: figures of the load test; None if it failed, or none was asked for.
        memory_bytes: memory charged to the sandbox right after the load; None if it cannot be observed.
        steal_share: fraction of CPU time that the host's hypervisor took away while it ran (proc(5), steal).
        error: why the sample failed, one line; None if it did not.
    """

    level: str
    round: int
    position: int
    started: str
    phases_s: dict[str, float]
    startup_s: float | None
    load: Load | None
    memory_bytes: int | None
    steal_share: float | None
    error: str | None


@dataclass(frozen=True, slots=True)
class LevelInfo:
    """One level of the comparison.

    Attributes:
        name: name of the level.
        label: name as shown, which says when the machine is emulated.
        emulated: whether the sandbox's CPU is emulated in software.
        available: whether the level is available on this host.
        reason: why it is not available, else None.
        remedy: how to make it available, else None.
    """

    name: str
    label: str
    emulated: bool
    available: bool
    reason: str | None
    remedy: str | None


@dataclass(frozen=True, slots=True)
class Summary:
    """One level's figures over its counted samples; None for what was not measured.

    Attributes:
        level: the isolation level.
        attempted: number of sandboxes started in counted rounds so far.
        failed: number of those that failed; they are left out of the figures.
        startup_s: time to the first correct reply.
        startup_ratio: ratio to the baseline's startup time, paired by round.
        phases_s: median of each phase.
        requests_per_s: throughput under saturation.
        throughput_ratio: ratio to the baseline's throughput, paired by round.
        latency_s: latency by PERCENTILES.
        memory_bytes: memory charged after the load.
        request_errors: number of failed requests in all loads together.
        unstable: names of the figures with a wide interval.
    """

    level: str
    attempted: int
    failed: int
    startup_s: Estimate | None
    startup_ratio: Estimate | None
    phases_s: dict[str, float]
    requests_per_s: Estimate | None
    throughput_ratio: Estimate | None
    latency_s: dict[str, Estimate]
    memory_bytes: Estimate | None
    request_errors: int
    unstable: list[str]


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of a comparison.

    Attributes:
        baseline: the level that ratios refer to.
        samples: number of counted sandboxes per level.
        duration_s: seconds of each load; 0 for none.
        connections: connections that the generator keeps open, each with one request in flight.
        seed: seed of the order of levels in each round.
        server_cpus: CPUs of the sandboxes, in the format of cpuset(7).
        generator_cpus: CPUs of the load generator.
        cpus, memory_bytes, pids_limit: limits of each sandbox.
    """

    workload: str
    levels: list[str]
    baseline: str
    samples: int
    duration_s: int
    connections: int
    path: str
    seed: int
    server_cpus: str
    generator_cpus: str
    cpus: float
    memory_bytes: int
    pids_limit: int


@dataclass(frozen=True, slots=True)
class Host:
    """The machine, without its name and addresses.

    Attributes:
        virtualisation: "none", or the hypervisor, as far as the CPU and the firmware report it.
        cgroups: "v1", "v2" or "hybrid".
        governor: governor of the CPU frequency; None if the kernel does not scale it.
        load_average: load over 1, 5 and 15 minutes, before the run.
        versions: versions of the programs involved.
        images: digest of each form of the root filesystem.
    """

    kernel: str
    machine: str
    system: str
    cpu_model: str
    cpus: int
    memory_bytes: int
    virtualisation: str
    cgroups: str
    clocksource: str
    governor: str | None
    load_average: list[float]
    versions: dict[str, str]
    images: dict[str, str]


@dataclass(frozen=True, slots=True)
class Caveat:
    """A reason to trust the figures less: a stable code, and one line for people."""

    code: str
    text: str


@dataclass(slots=True)
class Document:
    """One comparison. Samples are added while it runs, see `save`."""

    sandbox_version: str
    status: Status
    started: str
    finished: str | None
    plan: Plan
    host: Host
    levels: list[LevelInfo]
    samples: list[Sample] = field(default_factory=list)
    summary: list[Summary] = field(default_factory=list)
    isolation: list[IsolationCheck] = field(default_factory=list)
    warnings: list[Caveat] = field(default_factory=list)
    format: str = FORMAT
    version: int = VERSION

    def info(self, level: str) -> LevelInfo:
        """Return the level of that name.

        Raises:
            KeyError: it is not in the document.
        """
        for info in self.levels:
            if info.name == level:
                return info
        raise KeyError(level)

    def summary_of(self, level: str) -> Summary | None:
        """Return a level's figures; None before it has any."""
        return next((summary for summary in self.summary if summary.level == level), None)


def dumps(document: Document) -> str:
    """Return the document as JSON text."""
    return json.dumps(dataclasses.asdict(document), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def loads(text: str | bytes) -> Document:
    """Parse a document and check it.

    Raises:
        ResultsError: it is not JSON, has another format or version, or a field is missing, unknown or of another type.
    """
    try:
        raw = codec.parse(text)
    except (ValueError, RecursionError) as error:
        raise ResultsError(
            f"this is not a result document: {error}", "give a results.json that sandbox compare wrote"
        ) from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ResultsError("this is not a result document of sandbox", "give a results.json that sandbox compare wrote")
    if raw.get("version") != VERSION:
        raise ResultsError(
            f"the document has version {raw.get('version')!r}, and this sandbox reads version {VERSION}",
            f"render it with the sandbox that wrote it ({raw.get('sandbox_version', 'unknown')})",
        )
    try:
        document: Document = codec.decode(Document, raw, "document")
    except codec.MismatchError as error:
        raise ResultsError(f"the document is damaged: {error}", "give a file as sandbox compare wrote it") from None
    _check_references(document)
    return document


def load(path: Path) -> Document:
    """Read a document from a file.

    Raises:
        ResultsError: it cannot be read, or as for `loads`.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ResultsError(f"{path} is larger than {MAX_BYTES // 1024 // 1024} MiB, too large for a result document")
    return loads(data)


def save(document: Document, path: Path) -> None:
    """Write the document to a file atomically: a reader or a crash finds the old or the new one, never a part.

    Raises:
        ResultsError: it cannot be written; the old file is unchanged.
    """
    write_text(path, dumps(document))


def write_text(path: Path, text: str) -> None:
    """Replace a file atomically, through a temporary file beside it (rename(2)).

    Raises:
        ResultsError: it cannot be written; the old file is unchanged.
    """
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise ResultsError(f"{path} cannot be written: {error.strerror}", "is the disk full?") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _check_references(document: Document) -> None:
    """Check that every level that is referred to is one of the document's."""
    names = [info.name for info in document.levels]
    spoken = {*document.plan.levels, document.plan.baseline}
    rows: list[Sample | Summary | IsolationCheck] = [*document.samples, *document.summary, *document.isolation]
    spoken.update(row.level for row in rows)
    if len(set(names)) != len(names) or not spoken <= set(names):
        raise ResultsError(
            "the document is damaged: it refers to a level that it does not list",
            "give a file as sandbox compare wrote it",
        )
