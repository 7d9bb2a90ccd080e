"""What a user asks for: one frozen spec, the same at every level, honoured or refused.

Parsing of limits follows docker-run(1): `--memory 256m`, `--cpus 0.5`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from sandbox.errors import SpecError

NAME_PATTERN = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
ENV_NAME_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

MIB = 1024 * 1024
MIN_MEMORY = 16 * MIB
"""Bytes. A Python server with its workers needs about 12 MiB; below this nothing of ours starts."""
MIN_PIDS = 8
MAX_PIDS = 4_194_304
"""The kernel's own ceiling, PID_MAX_LIMIT on 64 bit (proc(5), pid_max)."""

DEFAULT_CPUS = 1.0
DEFAULT_MEMORY = 256 * MIB
DEFAULT_PIDS = 128
DEFAULT_PORT = 8080

LISTEN = "@listen@"
"""Stands in an argv for the address to listen on, until the sandbox's place on the network is known."""

SANDBOX_UID = 10001
"""The user that the workload runs as, inside, at every level; the root filesystem's passwd has it as `sandbox`."""

_UNITS = {"": 1, "b": 1, "k": 1024, "m": MIB, "g": 1024 * MIB, "t": 1024 * 1024 * MIB}


@dataclass(frozen=True, slots=True)
class SandboxSpec:
    """One sandbox, as asked for. Validated by `make_spec`; drivers may trust it.

    Attributes:
        name: matches NAME_PATTERN; unique among the sandboxes of a host.
        workload: the name of the workload, shown in listings.
        isolation: one of the levels of `sandbox.isolation.LEVELS`.
        argv: the full command that runs inside, under the init, as SANDBOX_UID.
        env: environment entries, sorted by name; the command's environment is these and PATH, HOME, LANG only.
        port: TCP port that the workload listens on.
        ready_path: HTTP path that answers 200 once the workload serves.
        cpus: CPU time per second of wall time, > 0.
        memory: bytes; swap is not added to it.
        pids_limit: processes and threads together.
        cpuset: CPU list as of cpuset(7), such as "0" or "0-1"; None for all.
    """

    name: str
    workload: str
    isolation: str
    argv: tuple[str, ...]
    env: tuple[tuple[str, str], ...] = ()
    port: int = DEFAULT_PORT
    ready_path: str = "/healthz"
    cpus: float = DEFAULT_CPUS
    memory: int = DEFAULT_MEMORY
    pids_limit: int = DEFAULT_PIDS
    cpuset: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The spec as JSON types; `from_json` is its inverse."""
        raw = asdict(self)
        raw["argv"] = list(self.argv)
        raw["env"] = dict(self.env)
        return raw

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> SandboxSpec:
        """Rebuild a spec from a record.

        Raises:
            KeyError, TypeError, ValueError: the record is not one of ours.
        """
        values = dict(raw)
        values["argv"] = tuple(str(item) for item in values["argv"])
        values["env"] = tuple(sorted((str(k), str(v)) for k, v in values["env"].items()))
        return cls(**values)


def parse_name(text: str) -> str:
    """Check a sandbox's name.

    Raises:
        SpecError: it does not match NAME_PATTERN.
    """
    if not NAME_PATTERN.fullmatch(text):
        raise SpecError(
            f"name {text!r} is not allowed",
            "use 1 to 63 of a-z, 0-9 and '-', starting with a letter or digit, such as web-1",
        )
    return text


def parse_memory(text: str, host_bytes: int | None = None) -> int:
    """Bytes from docker's notation: a number and b, k, m, g or t (powers of 1024).

    Raises:
        SpecError: not a number with such a unit, below MIN_MEMORY, or more than the host has.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([bkmgt]?)(?:i?b)?", text.strip().lower())
    if not match:
        raise SpecError(f"--memory {text!r} is not a size", "a number and a unit, such as 256m or 1g")
    value = int(float(match[1]) * _UNITS[match[2]])
    if value < MIN_MEMORY:
        raise SpecError(
            f"--memory {text} is {value} bytes, too little for a server",
            f"at least {MIN_MEMORY // MIB}m; a bare number counts bytes, so write 256m",
        )
    if host_bytes is not None and value > host_bytes:
        raise SpecError(
            f"--memory {text} is more than the host has",
            f"at most {host_bytes // MIB}m",
        )
    return value


def parse_cpus(text: str, host_cpus: int | None = None) -> float:
    """A number of CPUs, fractions allowed.

    Raises:
        SpecError: not a positive finite number, below a hundredth, or more than the host has.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise SpecError(f"--cpus {text!r} is not a number", "such as 1 or 0.5")
    if value < 0.01:
        # cgroup quotas bottom out at 1 ms per period (Documentation/scheduler/sched-bwc.rst).
        raise SpecError(f"--cpus {text} is too little to run", "at least 0.01")
    if host_cpus is not None and value > host_cpus:
        raise SpecError(f"--cpus {text} is more than this host has", f"at most {host_cpus}")
    return value


def parse_pids(value: int) -> int:
    """A limit on processes and threads together.

    Raises:
        SpecError: below MIN_PIDS or above the kernel's ceiling.
    """
    if value < MIN_PIDS:
        raise SpecError(
            f"--pids-limit {value} is too low for a server with its init and workers",
            f"at least {MIN_PIDS}",
        )
    if value > MAX_PIDS:
        raise SpecError(f"--pids-limit {value} is above the kernel's ceiling", f"at most {MAX_PIDS}")
    return value


def parse_env(entries: Iterable[str], environ: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Environment entries in docker's notation: NAME=VALUE, or NAME to take it from `environ`.

    Raises:
        SpecError: a name that is no identifier, a value with NUL or a newline, or NAME that is not set.
    """
    result: dict[str, str] = {}
    for entry in entries:
        name, given, value = entry.partition("=")
        if not ENV_NAME_PATTERN.fullmatch(name):
            raise SpecError(f"-e {entry!r}: {name!r} is no variable's name", "NAME=VALUE, such as DEBUG=1")
        if not given:
            if name not in environ:
                raise SpecError(f"-e {name}: it is not set here, so there is nothing to pass", f"-e {name}=VALUE")
            value = environ[name]
        if "\0" in value or "\n" in value or "\r" in value:
            raise SpecError(f"-e {name}: the value has a NUL or a line break", "one line of text")
        result[name] = value
    return tuple(sorted(result.items()))


def parse_cpuset(text: str, allowed: Iterable[int]) -> str:
    """A CPU list as of cpuset(7), checked against the CPUs that this process may use.

    Raises:
        SpecError: not a list of CPU numbers and ranges, or a CPU that is not there.
    """
    cpus: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,5})(?:-(\d{1,5}))?", part.strip())
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise SpecError(f"--cpuset-cpus {text!r} is not a CPU list", "such as 0 or 0-1 or 0,2")
        cpus.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    there = set(allowed)
    if not cpus <= there:
        missing = ",".join(str(cpu) for cpu in sorted(cpus - there)[:4])
        raise SpecError(f"--cpuset-cpus {text}: this host has no CPU {missing}", f"it has {_cpu_list(there)}")
    return _cpu_list(cpus)


def _cpu_list(cpus: Iterable[int]) -> str:
    return ",".join(str(cpu) for cpu in sorted(cpus))


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits as read back from whatever enforces them; None where they cannot be observed.

    Attributes:
        cpus: CPU time per second of wall time.
        memory: bytes, swap included.
        pids: processes and threads.
        source: what was read, such as "cgroup v1" or "live domain + guest cgroup v2".
    """

    cpus: float | None
    memory: int | None
    pids: int | None
    source: str = field(default="", compare=False)
