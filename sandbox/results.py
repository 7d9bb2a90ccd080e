"""The result document of a comparison: what `sandbox compare` writes and `sandbox report` reads.

One JSON object, with every raw sample in it. Its dataclasses are its schema: loading checks each key and each type
against them, and refuses what is missing, unknown, of another type, or not a finite number. Units are in the names:
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
"""Bytes. A thousand sandboxes at five levels make about 5 MiB; anything near this is not one of ours."""

PHASES = ("prepare", "create", "boot", "start", "first_reply")
"""The phases of a start, in order; the same names as `sandbox.phases.Phase` has."""

PERCENTILES = ("p50", "p90", "p99", "p99.9", "max")
"""Keys of a latency distribution, in order."""


class ResultsError(SandboxError):
    """A result document cannot be read, or is not one that this version knows."""


class Status(StrEnum):
    """Whether the run behind a document came to its end. While it runs, it is incomplete."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"


class Verdict(StrEnum):
    """What a witness on the host concluded about one wall.

    HELD and NOT HELD are for limits, pushed past on purpose; the others say whether a thing of the host is out of
    reach from inside. UNKNOWN: no evidence either way; never a guess.
    """

    ISOLATED = "ISOLATED"
    PARTIAL = "PARTIAL"
    SHARED = "SHARED"
    HELD = "HELD"
    NOT_HELD = "NOT HELD"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class IsolationCheck:
    """One wall at one level.

    Attributes:
        level: the isolation level.
        check: what was looked at, such as "kernel" or "memory limit"; the same names at every level.
        verdict: the witness's conclusion.
        evidence: what was observed, by name: inside and outside.
        witness: one line that says how the host judged.
    """

    level: str
    check: str
    verdict: Verdict
    evidence: dict[str, str]
    witness: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """A median with its 95 % interval, over `n` sandboxes. No interval (None) where n is 1."""

    median: float
    low: float | None
    high: float | None
    n: int

    @property
    def relative_width(self) -> float | None:
        """Width of the interval as a share of the median; None where there is no interval."""
        if self.low is None or self.high is None or self.median <= 0:
            return None
        return (self.high - self.low) / self.median


@dataclass(frozen=True, slots=True)
class Load:
    """One saturation load against one sandbox.

    Attributes:
        requests: answered, whatever the status.
        duration_s: as the generator measured it.
        requests_per_s: requests ÷ duration_s.
        received_bytes: headers and bodies.
        latency_s: by PERCENTILES.
        errors: by kind: connect, read, write, timeout, status (any answer that is not 2xx or 3xx).
    """

    requests: int
    duration_s: float
    requests_per_s: float
    received_bytes: int
    latency_s: dict[str, float]
    errors: dict[str, int]


@dataclass(frozen=True, slots=True)
class Sample:
    """One fresh sandbox.

    Attributes:
        level: the isolation level.
        round: 0 is the warm-up, which is not counted.
        position: its place in the round, from 0.
        started: time of day.
        phases_s: duration of each phase that was completed.
        startup_s: from the beginning of the first phase to the first correct reply; None when it never came.
        load: None when it failed, or none was asked for.
        memory_bytes: charged to the sandbox right after the load; None when it cannot be observed.
        steal_share: of all CPU time while it ran, the share that the host's own hypervisor gave to others (proc(5)).
        error: why the sample failed, one line; None when it did not.
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
        name: as asked for.
        label: as shown everywhere; says when the machine is emulated.
        emulated: whether the sandbox's CPU is emulated in software.
        available: whether this host can do it.
        reason: why not, else None.
        remedy: what mends it, else None.
    """

    name: str
    label: str
    emulated: bool
    available: bool
    reason: str | None
    remedy: str | None


@dataclass(frozen=True, slots=True)
class Summary:
    """One level's figures, over its counted samples. None: not measured.

    Attributes:
        level: the isolation level.
        attempted: sandboxes asked for in counted rounds so far.
        failed: those of them with an error; they are in no figure.
        startup_s: time to the first correct reply.
        startup_ratio: to the baseline's, paired by round.
        phases_s: median of each phase.
        requests_per_s: throughput under saturation.
        throughput_ratio: to the baseline's, paired by round.
        latency_s: by PERCENTILES.
        memory_bytes: charged after the load.
        request_errors: failed requests in all loads together.
        unstable: figures whose interval is wide, by name.
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
    """What was asked for.

    Attributes:
        baseline: the level that ratios are against.
        samples: counted sandboxes per level.
        duration_s: of each load; 0 for none.
        connections: kept open by the generator, each always with one request in flight.
        seed: of the order of levels within each round.
        server_cpus: CPUs of the sandboxes, as of cpuset(7).
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
    """The machine, without its name or addresses.

    Attributes:
        virtualisation: "none", or what it runs under, as far as the CPU and the firmware tell.
        cgroups: "v1", "v2" or "hybrid".
        governor: of CPU frequency; None where the kernel does not scale it.
        load_average: over 1, 5 and 15 minutes, before the run.
        versions: of each program that took part.
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
    """Something that makes figures less trustworthy: a stable code, and one line for people."""

    code: str
    text: str


@dataclass(slots=True)
class Document:
    """One comparison. Grows while it runs; see `save`."""

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
        """The level of that name.

        Raises:
            KeyError: it is not in the document.
        """
        for info in self.levels:
            if info.name == level:
                return info
        raise KeyError(level)

    def summary_of(self, level: str) -> Summary | None:
        """The level's figures; None before it has any."""
        return next((summary for summary in self.summary if summary.level == level), None)


def dumps(document: Document) -> str:
    """The document as JSON text."""
    return json.dumps(dataclasses.asdict(document), indent=1, allow_nan=False, ensure_ascii=False) + "\n"


def loads(text: str | bytes) -> Document:
    """Read a document and check it.

    Raises:
        ResultsError: not JSON, another format or version, or a field that is missing, unknown or of another type.
    """
    try:
        raw = codec.parse(text)
    except (ValueError, RecursionError) as error:
        raise ResultsError(
            f"this is not a result document: {error}", "give a file that sandbox compare wrote"
        ) from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ResultsError("this is not a result document of sandbox", "give a file that sandbox compare wrote")
    if raw.get("version") != VERSION:
        raise ResultsError(
            f"the document has version {raw.get('version')!r}, this sandbox knows {VERSION}",
            f"render it with the sandbox that wrote it ({raw.get('sandbox_version', 'unknown')})",
        )
    try:
        document: Document = codec.decode(Document, raw, "document")
    except codec.MismatchError as error:
        raise ResultsError(f"the document is damaged: {error}", "give a file as sandbox compare wrote it") from None
    _check_references(document)
    return document


def load(path: Path) -> Document:
    """Read a file that `save` wrote.

    Raises:
        ResultsError: it cannot be read, or see `loads`.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ResultsError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_BYTES:
        raise ResultsError(f"{path} is larger than {MAX_BYTES // 1024 // 1024} MiB, so not one of ours")
    return loads(data)


def save(document: Document, path: Path) -> None:
    """Write the document in one step: a reader, or a crash, finds the old one or the new one, never half of one.

    Raises:
        ResultsError: the disk refuses; the old file stands.
    """
    write_text(path, dumps(document))


def write_text(path: Path, text: str) -> None:
    """Replace a file in one step, through a temporary file beside it (rename(2)).

    Raises:
        ResultsError: the disk refuses; the old file stands.
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
    """Every level that is spoken of is one of the document's."""
    names = [info.name for info in document.levels]
    spoken = {*document.plan.levels, document.plan.baseline}
    rows: list[Sample | Summary | IsolationCheck] = [*document.samples, *document.summary, *document.isolation]
    spoken.update(row.level for row in rows)
    if len(set(names)) != len(names) or not spoken <= set(names):
        raise ResultsError(
            "the document is damaged: its levels do not agree", "give a file as sandbox compare wrote it"
        )
