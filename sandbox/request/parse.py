"""Parse option values into the fields of a spec; errors say in one line what was wrong and what would be right. Pure.

The notation is that of docker-run(1): `--memory 256m`, `--cpus 0.5`, `-e NAME=VALUE`, `-p HOST:CTR`. The argument
`what` of each function is the flag, or the key in a file, that its messages name.
"""

from __future__ import annotations

import math
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence

from sandbox.errors import SpecError
from sandbox.spec import (
    ENV_NAME_PATTERN,
    MAX_PIDS,
    MIB,
    MIN_DISK,
    MIN_MEMORY,
    MIN_PIDS,
    NAME_PATTERN,
    Publish,
)

_UNITS = {"": 1, "b": 1, "k": 1024, "m": MIB, "g": 1024 * MIB, "t": 1024 * 1024 * MIB}
# Strings, compiled on first use: most starts need none of them.
_SIZE = r"([0-9]{1,20}(?:\.[0-9]{1,20})?)([bkmgt]?)(?:i?b)?"
_NUMBER = r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?"
MAX_ARGUMENTS = 128 * 1024
"""Bytes of a command and its environment together; execve(2) accepts no single string longer than this."""
MAX_PATH = 4096
"""Bytes, PATH_MAX of limits.h."""
MAX_PORT = 65535


def one_line(text: str, limit: int = 80) -> str:
    """Quote, escape and shorten a text for a message."""
    return repr(text if len(text) <= limit else text[: limit - 3] + "...")


def name(text: str, what: str = "name") -> str:
    """Check a sandbox's name.

    Raises:
        SpecError: it does not match NAME_PATTERN.
    """
    if not NAME_PATTERN.fullmatch(text):
        raise SpecError(
            f"{what} {one_line(text)} is not allowed",
            "use 1 to 63 of a-z, 0-9 and '-', starting with a letter or digit, such as web-1",
        )
    return text


def _size(text: str, what: str) -> int:
    match = re.fullmatch(_SIZE, text.strip().lower())
    if not match:
        raise SpecError(f"{what} {one_line(text)} is not a size", "a number and a unit, such as 256m or 1g")
    return int(float(match[1]) * _UNITS[match[2]])


def memory(text: str, host_bytes: int | None = None, what: str = "--memory") -> int:
    """Parse an amount of memory in docker's notation, a number and b, k, m, g or t (powers of 1024), to bytes.

    Raises:
        SpecError: it is not a size, below MIN_MEMORY, or more than the host has.
    """
    text = text.strip()
    value = _size(text, what)
    if value < MIN_MEMORY:
        raise SpecError(
            f"{what} {text} is {value} bytes, too little for a server",
            f"at least {MIN_MEMORY // MIB}m; a number without a unit is in bytes, so write 256m",
        )
    if host_bytes is not None and value > host_bytes:
        raise SpecError(f"{what} {text} is more than this host has", f"at most {host_bytes // MIB}m")
    return value


def disk(text: str, memory_bytes: int, what: str = "--disk") -> int:
    """Parse the size of /tmp, in docker's notation, to bytes.

    Raises:
        SpecError: it is not a size, below MIN_DISK, or more than the sandbox's memory, which holds the files.
    """
    text = text.strip()
    value = _size(text, what)
    if value < MIN_DISK:
        raise SpecError(
            f"{what} {text} is {value} bytes, too little for a file system",
            f"at least {MIN_DISK // MIB}m; a number without a unit is in bytes, so write 64m",
        )
    if value > memory_bytes:
        raise SpecError(
            f"{what} {text} is more than the sandbox's memory, which holds its files",
            f"at most {memory_bytes // MIB}m, or a larger --memory",
        )
    return value


def cpus(text: str, host_cpus: int | None = None, what: str = "--cpus") -> float:
    """Parse a number of CPUs; fractions are allowed.

    Raises:
        SpecError: it is not a positive finite number, below 0.01, or more than the host has.
    """
    value = float(text) if re.fullmatch(_NUMBER, text) else math.nan
    if not math.isfinite(value):
        raise SpecError(f"{what} {one_line(text)} is not a number", "such as 1 or 0.5")
    if value < 0.01:
        # The smallest cgroup quota is 1 ms per period (Documentation/scheduler/sched-bwc.rst).
        raise SpecError(f"{what} {text} is too little to run", "at least 0.01")
    if host_cpus is not None and value > host_cpus:
        raise SpecError(f"{what} {text} is more than this host has", f"at most {host_cpus}")
    return value


def pids(value: int, host_pids: int = MAX_PIDS, what: str = "--pids-limit") -> int:
    """Check a limit on processes and threads together.

    Raises:
        SpecError: it is below MIN_PIDS, or more than the host's pid_max.
    """
    if value < MIN_PIDS:
        raise SpecError(f"{what} {value} is too low for a server with its init and workers", f"at least {MIN_PIDS}")
    if value > host_pids:
        raise SpecError(f"{what} {value} is more than this host's pid_max", f"at most {host_pids}")
    return value


def cpuset(text: str, allowed: Iterable[int], what: str = "--cpuset-cpus") -> str:
    """Parse a CPU list in the format of cpuset(7), and check it against the CPUs that this process may use.

    Raises:
        SpecError: it is not a list of CPU numbers and ranges, or it has a CPU that is not available.
    """
    wanted: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", part.strip())
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise SpecError(f"{what} {one_line(text)} is not a CPU list", "such as 0 or 0-1 or 0,2")
        wanted.update(range(int(match[1]), int(match[2] or match[1]) + 1))
    there = set(allowed)
    if not wanted <= there:
        missing = ",".join(str(cpu) for cpu in sorted(wanted - there)[:4])
        raise SpecError(f"{what} {text}: this host has no CPU {missing}", f"it has {_cpu_list(there)}")
    return _cpu_list(wanted)


def _cpu_list(numbers: Iterable[int]) -> str:
    return ",".join(str(cpu) for cpu in sorted(numbers))


def env(entries: Iterable[str], environ: Mapping[str, str], what: str = "-e") -> tuple[tuple[str, str], ...]:
    """Parse environment variables: NAME=VALUE, or NAME for the value in `environ`. The last entry for a name counts.

    Raises:
        SpecError: a name is invalid, a value contains a NUL or a line break, or a NAME is not set.
    """
    result: dict[str, str] = {}
    for entry in entries:
        variable, given, value = entry.partition("=")
        if not given and ENV_NAME_PATTERN.fullmatch(variable):
            if variable not in environ:
                raise SpecError(f"{what} {variable}: the variable is not set", f"write {what} {variable}=VALUE")
            value = environ[variable]
        result[variable] = env_value(variable, value, what)
    return tuple(sorted(result.items()))


def env_value(variable: str, value: str, what: str = "-e") -> str:
    """Check one environment variable, and return its value.

    Raises:
        SpecError: the name is invalid, or the value contains a NUL or a line break, or is not UTF-8.
    """
    if not ENV_NAME_PATTERN.fullmatch(variable):
        raise SpecError(f"{what} {one_line(variable)} is not a variable's name", "write NAME=VALUE, such as DEBUG=1")
    if "\0" in value or "\n" in value or "\r" in value:
        raise SpecError(f"{what} {variable}: the value contains a NUL or a line break", "one line of text is allowed")
    _text(value, f"{what} {variable}")
    return value


def env_file(text: str, environ: Mapping[str, str], what: str) -> dict[str, str]:
    """Parse the text of a docker --env-file: lines of NAME=VALUE or NAME, blank lines, and comments that start with #.

    Raises:
        SpecError: as for `env`.
    """
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    return dict(env(lines, environ, what))


def command(argv: Sequence[str], variables: Iterable[tuple[str, str]] = (), what: str = "the command") -> None:
    """Check a command to run inside.

    Args:
        argv: the command with its arguments.
        variables: its environment, which counts towards the same limit.
        what: what messages call it.

    Raises:
        SpecError: it is empty, contains a NUL, is not UTF-8, or is larger than MAX_ARGUMENTS.
    """
    if not argv or not argv[0]:
        raise SpecError(f"{what} is empty", "give a program and its arguments, such as python3 -m http.server 8000")
    for part in argv:
        if "\0" in part:
            raise SpecError(f"{what} contains a NUL in {one_line(part)}", "an argument cannot contain one")
        _text(part, what)
    size = sum(len(part.encode()) + 1 for pair in variables for part in pair)
    size += sum(len(part.encode()) + 1 for part in argv)
    if size > MAX_ARGUMENTS:
        raise SpecError(
            f"{what} and its environment have {size} bytes", f"at most {MAX_ARGUMENTS}; put large data into a file"
        )


def _text(value: str, what: str) -> None:
    """Refuse text that was not UTF-8: it could not be written into records and requests to engines."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise SpecError(f"{what}: {one_line(value)} is not UTF-8", "only UTF-8 is allowed") from None


def port(value: int, what: str = "--port") -> int:
    """Check a TCP port.

    Raises:
        SpecError: it is not in 1 to 65535.
    """
    if not 1 <= value <= MAX_PORT:
        raise SpecError(f"{what} {value} is not a TCP port", f"1 to {MAX_PORT}")
    return value


def publish(text: str, what: str = "-p") -> Publish:
    """Parse a published port: HOST:CTR or 127.0.0.1:HOST:CTR, perhaps with `/tcp` at the end.

    Raises:
        SpecError: it has another form, address or protocol, or a number that is not a TCP port.
    """
    numbers, _, protocol = text.partition("/")
    if protocol and protocol.lower() != "tcp":
        raise SpecError(f"{what} {one_line(text)}: only TCP can be published", f"{what} {one_line(numbers)[1:-1]}")
    address, _, pair = numbers.rpartition(":")
    address, colon, first = address.rpartition(":")
    if colon and address not in ("127.0.0.1", "localhost"):
        raise SpecError(
            f"{what} {one_line(text)}: ports are published on 127.0.0.1 only, out of reach of other machines",
            f"{what} 127.0.0.1:{one_line(first)[1:-1]}:{one_line(pair)[1:-1]}",
        )
    if not all(re.fullmatch("[0-9]{1,9}", part) for part in (first, pair)):
        raise SpecError(
            f"{what} {one_line(text)} is not HOST:CTR",
            f"a port of the host and one inside, such as {what} 8000:8080",
        )
    return Publish(port(int(first), f"{what} {text}: port"), port(int(pair), f"{what} {text}: port"))


def publications(texts: Iterable[str], what: str = "-p") -> tuple[Publish, ...]:
    """Parse all published ports of a sandbox; return them sorted.

    Raises:
        SpecError: as for `publish`, or a port of the host is given twice.
    """
    found: dict[int, Publish] = {}
    for text in texts:
        one = publish(text, what)
        if one.host in found:
            raise SpecError(f"{what} {text}: port {one.host} of the host is given twice", "each can be published once")
        found[one.host] = one
    return tuple(found[number] for number in sorted(found))


def ready_path(text: str, what: str = "--ready-path") -> str:
    """Check the path of an HTTP request.

    Raises:
        SpecError: it does not start with a slash, is too long, or is not visible ASCII (RFC 9112, 3.2.1).
    """
    if not re.fullmatch(r"/[!-~]{0,1023}", text) or "#" in text:
        raise SpecError(
            f"{what} {one_line(text)} is not the path of an HTTP request", "such as /healthz: visible ASCII, no spaces"
        )
    return text


def inside_path(text: str, what: str) -> str:
    """Check an absolute path inside a sandbox; return it normalised.

    Raises:
        SpecError: it is relative, contains `..` or a character that is not printable, or is too long.
    """
    _text(text, what)
    if not text.startswith("/"):
        raise SpecError(f"{what} {one_line(text)} is not an absolute path", "give a path inside, such as /data")
    if ".." in text.split("/"):
        raise SpecError(f"{what} {one_line(text)} contains '..'", "write the path without it")
    if not text.isprintable():
        raise SpecError(f"{what} {one_line(text)} contains a character that is not printable", "use another path")
    if len(text.encode()) >= MAX_PATH:
        raise SpecError(f"{what} is a path of {len(text.encode())} bytes", f"fewer than {MAX_PATH} are allowed")
    return "/" + posixpath.normpath(text).lstrip("/")
