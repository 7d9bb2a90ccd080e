"""Turn a target and options into a SandboxSpec, for the command line, the Python API and the tests.

A target is the name of a workload, a command of the root filesystem, or a directory with a `sandbox.toml`. Flags
override that file, and the file overrides the defaults.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sandbox import workloads
from sandbox.errors import NotFoundError, SpecError
from sandbox.isolation import LEVELS
from sandbox.request import parse
from sandbox.request.naming import fresh_name
from sandbox.spec import (
    DEFAULT_CPUS,
    DEFAULT_DISK,
    DEFAULT_MEMORY,
    DEFAULT_PIDS,
    DEFAULT_PORT,
    LISTEN,
    MAX_PIDS,
    NAME_PATTERN,
    Mount,
    SandboxSpec,
)

if TYPE_CHECKING:
    from sandbox.request.application import Application

Target = str | os.PathLike[str] | Sequence[str]
"""A workload's name or a directory as text, a directory as a path, or a command as a sequence."""

MAX_ENV_FILE = 256 * 1024
"""Bytes."""
_TITLE = 40


@dataclass(frozen=True, slots=True)
class Options:
    """Options as a user gives them; None, or an empty sequence, stands for the default.

    Attributes:
        name: name of the sandbox.
        cpus, memory, disk: limits in docker's notation.
        pids_limit: processes and threads.
        cpuset: CPU list.
        env: environment variables, NAME=VALUE or NAME.
        env_file: files of such lines; `env` overrides them.
        port: TCP port that a command listens on.
        ready_path: HTTP path that is answered with 200 once the workload serves.
        volumes: bind mounts, HOST:CTR[:ro].
        publish: published ports, HOST:CTR.
        workdir: absolute path inside.
    """

    name: str | None = None
    cpus: str | None = None
    memory: str | None = None
    disk: str | None = None
    pids_limit: int | None = None
    cpuset: str | None = None
    env: Sequence[str] = ()
    env_file: Sequence[str] = ()
    port: int | None = None
    ready_path: str | None = None
    volumes: Sequence[str] = ()
    publish: Sequence[str] = ()
    workdir: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """A spec, and the application whose files must be staged for it, if any."""

    spec: SandboxSpec
    application: Application | None = None


@dataclass(frozen=True, slots=True)
class _Subject:
    """The command and its defaults that a target stands for, before any flag is applied."""

    title: str
    argv: tuple[str, ...]
    port: int | None
    ready_path: str
    workdir: str = "/"
    application: Application | None = None
    is_workload: bool = False


def make(target: Target, isolation: str, options: Options | None = None) -> Request:
    """Validate a target and options, and make a spec of them.

    Args:
        target: what to run.
        isolation: the isolation level.
        options: everything else.

    Raises:
        SpecError, NotFoundError: says in one line what was wrong and what would be right.
    """
    options = options or Options()
    if isolation not in LEVELS:
        raise NotFoundError(f"there is no isolation level {parse.one_line(isolation)}", "one of " + ", ".join(LEVELS))
    subject = _subject(target)
    if subject.is_workload and options.port is not None:
        raise SpecError(
            f"--port is for commands: the workload {subject.title} always serves on {DEFAULT_PORT}", "leave it out"
        )
    app = subject.application
    place = str(app.path) if app else ""
    env = _environment(options, app)
    parse.command(subject.argv, env)
    memory = _memory(options, app, place)
    return Request(
        SandboxSpec(
            name=parse.name(options.name) if options.name is not None else fresh_name(_slug(subject.title)),
            workload=subject.title,
            isolation=isolation,
            argv=subject.argv,
            env=env,
            port=parse.port(options.port) if options.port is not None else subject.port,
            ready_path=parse.ready_path(options.ready_path) if options.ready_path is not None else subject.ready_path,
            cpus=_cpus(options, app, place),
            memory=memory,
            pids_limit=_pids(options, app, place),
            cpuset=parse.cpuset(options.cpuset, os.sched_getaffinity(0)) if options.cpuset is not None else None,
            disk=_disk(options, app, place, memory),
            mounts=_mounts(options.volumes),
            publish=parse.publications(options.publish),
            app=app is not None,
            workdir=parse.inside_path(options.workdir, "--workdir") if options.workdir is not None else subject.workdir,
        ),
        app,
    )


def _mounts(volumes: Sequence[str]) -> tuple[Mount, ...]:
    if not volumes:
        return ()
    from sandbox.request import mounts  # most starts need neither this nor `application`

    return mounts.parse_all(volumes)


def is_path(text: str) -> bool:
    """Return whether a target is a directory: it contains a slash, or is "." or ".."."""
    return "/" in text or text in (".", "..")


def _subject(target: Target) -> _Subject:
    if isinstance(target, os.PathLike) or (isinstance(target, str) and is_path(target)):
        from sandbox.request import application

        app = application.load(os.fspath(target))
        return _Subject(
            title=_title(app.directory.name or "application"),
            argv=app.command,
            port=app.port,
            ready_path=app.ready_path,
            workdir=app.workdir,
            application=app,
        )
    if isinstance(target, str):
        try:
            argv = workloads.argv(target, host=LISTEN, port=DEFAULT_PORT)
        except NotFoundError as error:
            if os.path.isdir(target):
                shown = parse.one_line(target)[1:-1]
                raise NotFoundError(
                    f"there is no workload {parse.one_line(target)}, but there is a directory of that name",
                    f"sandbox run ./{shown}",
                ) from None
            raise NotFoundError(
                f"there is no workload {parse.one_line(target)}", f"{error.hint}; a command goes after --"
            ) from None
        return _Subject(target, argv, DEFAULT_PORT, "/healthz", is_workload=True)
    argv = tuple(target)
    if not all(isinstance(part, str) for part in argv):
        raise SpecError("the command has an argument that is not a string", "give a list of strings")
    parse.command(argv)
    return _Subject(_title(os.path.basename(argv[0]) or "command"), argv, None, "/")


def _title(text: str) -> str:
    """Make a title for listings, without characters that a terminal would interpret."""
    return "".join(c if c.isprintable() else "?" for c in text.encode("utf-8", "replace").decode("utf-8"))[:_TITLE]


def _slug(title: str) -> str:
    """Make the beginning of a valid sandbox name."""
    slug = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
    return slug if NAME_PATTERN.fullmatch(slug) else "sandbox"


def _environment(options: Options, app: Application | None) -> tuple[tuple[str, str], ...]:
    merged: dict[str, str] = dict(app.env) if app else {}
    for path in options.env_file:
        merged |= parse.env_file(_read_env_file(path), os.environ, f"--env-file {parse.one_line(path)}:")
    merged |= dict(parse.env(options.env, os.environ))
    return tuple(sorted(merged.items()))


def _read_env_file(path: str) -> str:
    what = f"--env-file {parse.one_line(path)}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise SpecError(f"{what} cannot be read: {words}", "give a file of NAME=VALUE lines") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise SpecError(f"{what} is not a regular file", "give a file of NAME=VALUE lines")
        data = os.read(descriptor, MAX_ENV_FILE + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_ENV_FILE:
        raise SpecError(f"{what} is larger than {MAX_ENV_FILE} bytes", "give a file of NAME=VALUE lines")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{what} is not UTF-8 (byte {error.start})", "save it as UTF-8") from None


def _cpus(options: Options, app: Application | None, place: str) -> float:
    here = os.cpu_count()
    if options.cpus is not None:
        return parse.cpus(options.cpus, here)
    if app and app.cpus is not None:
        return parse.cpus(app.cpus, here, f"{place}: limits.cpus")
    return DEFAULT_CPUS


def _memory(options: Options, app: Application | None, place: str) -> int:
    here = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if options.memory is not None:
        return parse.memory(options.memory, here)
    if app and app.memory is not None:
        return parse.memory(app.memory, here, f"{place}: limits.memory")
    return DEFAULT_MEMORY


def _pids(options: Options, app: Application | None, place: str) -> int:
    if options.pids_limit is not None:
        return parse.pids(options.pids_limit, _host_pids())
    if app and app.pids is not None:
        return parse.pids(app.pids, _host_pids(), f"{place}: limits.pids")
    return DEFAULT_PIDS


def _host_pids() -> int:
    """Return the host's limit on processes and threads (proc_sys_kernel(5), pid_max)."""
    with open("/proc/sys/kernel/pid_max", encoding="ascii") as stream:
        return min(int(stream.read()), MAX_PIDS)


def _disk(options: Options, app: Application | None, place: str, memory: int) -> int:
    if options.disk is not None:
        return parse.disk(options.disk, memory)
    if app and app.disk is not None:
        return parse.disk(app.disk, memory, f"{place}: limits.disk")
    # Files are kept in memory, so a larger limit could never be reached.
    return min(DEFAULT_DISK, memory // 2)


def options_of(values: Mapping[str, object]) -> Options:
    """Make Options of a Python caller's keyword arguments, which may be numbers, and mappings for lists of pairs.

    Raises:
        SpecError: an argument is unknown, or has a wrong type.
    """
    known = Options.__slots__
    taken: dict[str, object] = {}
    for key, value in values.items():
        if key not in known:
            raise SpecError(f"there is no argument {key!r}", "known are " + ", ".join(known))
        if value is not None:
            taken[key] = _plain(key, value)
    return Options(**taken)  # type: ignore[arg-type] # _plain has checked each


def _plain(key: str, value: object) -> object:
    if key in ("env", "env_file", "volumes", "publish"):
        if isinstance(value, Mapping):
            joint = "=" if key == "env" else ":"
            return tuple(f"{left}{joint}{right}" for left, right in value.items())
        if isinstance(value, Iterable) and not isinstance(value, str | bytes):
            return tuple(str(one) for one in value)
        raise SpecError(f"{key} is of type {type(value).__name__}", "give a list of strings, or a mapping")
    if key in ("pids_limit", "port"):
        if type(value) is int:
            return value
        raise SpecError(f"{key} is of type {type(value).__name__}", "give an integer")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SpecError(f"{key} is of type {type(value).__name__}", "give a string or a number")
    return str(value)
