"""What a user asked for, as text, turned into a spec. The command line, the Python API and the tests all come by here.

A target is the name of a workload, a command of the root filesystem, or a directory with a `sandbox.toml`. Flags stand
above what the directory's file says, and that above the defaults.
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
    """What may be said beside the target; None, or nothing, stands for the default.

    Attributes:
        name: of the sandbox.
        cpus, memory, disk: limits in docker's notation.
        pids_limit: processes and threads.
        cpuset: CPU list.
        env: NAME=VALUE or NAME each.
        env_file: files of such lines; `env` stands above them.
        port: TCP port that a command listens on.
        ready_path: HTTP path that answers 200 once it serves.
        volumes: HOST:CTR[:ro] each.
        publish: HOST:CTR each.
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
    """A spec, and the application whose files are to be staged for it; None where there is none."""

    spec: SandboxSpec
    application: Application | None = None


@dataclass(frozen=True, slots=True)
class _Subject:
    """What is to run, before any flag."""

    title: str
    argv: tuple[str, ...]
    port: int | None
    ready_path: str
    workdir: str = "/"
    application: Application | None = None
    is_workload: bool = False


def make(target: Target, isolation: str, options: Options | None = None) -> Request:
    """Validate what a user typed.

    Args:
        target: what is to run.
        isolation: a level.
        options: everything else.

    Raises:
        SpecError, NotFoundError: one line that says what was wrong and what would be right.
    """
    options = options or Options()
    if isolation not in LEVELS:
        raise NotFoundError(f"there is no isolation level {parse.one_line(isolation)}", "one of " + ", ".join(LEVELS))
    subject = _subject(target)
    if subject.is_workload and options.port is not None:
        raise SpecError(
            f"--port is of a command; the workload {subject.title} serves on {DEFAULT_PORT}", "leave it out"
        )
    app = subject.application
    place = str(app.place) if app else ""
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
    from sandbox.request import mounts  # like `application`: most starts need neither

    return mounts.parse_all(volumes)


def is_path(text: str) -> bool:
    """Whether a target's text is meant as a directory: it has a slash in it, or is "." or ".."."""
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
                    f"no workload is called {parse.one_line(target)}, but a directory here is", f"sandbox run ./{shown}"
                ) from None
            raise NotFoundError(
                f"no workload is called {parse.one_line(target)}", f"{error.hint}; a command goes behind --"
            ) from None
        return _Subject(target, argv, DEFAULT_PORT, "/healthz", is_workload=True)
    argv = tuple(target)
    if not all(isinstance(part, str) for part in argv):
        raise SpecError("the command has a part that is no text", "a list of texts")
    parse.command(argv)
    return _Subject(_title(os.path.basename(argv[0]) or "command"), argv, None, "/")


def _title(text: str) -> str:
    """A name for listings: nothing in it that a terminal would act on."""
    return "".join(c if c.isprintable() else "?" for c in text.encode("utf-8", "replace").decode("utf-8"))[:_TITLE]


def _slug(title: str) -> str:
    """The beginning of a legal sandbox's name."""
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
        raise SpecError(f"{what} cannot be read: {words}", "a file of NAME=VALUE lines") from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise SpecError(f"{what} is not a regular file", "a file of NAME=VALUE lines")
        data = os.read(descriptor, MAX_ENV_FILE + 1)
    finally:
        os.close(descriptor)
    if len(data) > MAX_ENV_FILE:
        raise SpecError(f"{what} is larger than {MAX_ENV_FILE} bytes", "a file of NAME=VALUE lines")
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
    """How many processes and threads this host can have (proc_sys_kernel(5), pid_max)."""
    with open("/proc/sys/kernel/pid_max", encoding="ascii") as stream:
        return min(int(stream.read()), MAX_PIDS)


def _disk(options: Options, app: Application | None, place: str, memory: int) -> int:
    if options.disk is not None:
        return parse.disk(options.disk, memory)
    if app and app.disk is not None:
        return parse.disk(app.disk, memory, f"{place}: limits.disk")
    # It is kept in memory, so that a limit above the memory's could never be met.
    return min(DEFAULT_DISK, memory // 2)


def options_of(values: Mapping[str, object]) -> Options:
    """Options from what Python callers pass: numbers where the flags take text, a mapping for the environment.

    Raises:
        SpecError: an argument that is not known, or of a type that makes no sense.
    """
    known = Options.__slots__
    taken: dict[str, object] = {}
    for key, value in values.items():
        if key not in known:
            raise SpecError(f"{key!r} is no argument", "known are " + ", ".join(known))
        if value is not None:
            taken[key] = _plain(key, value)
    return Options(**taken)  # type: ignore[arg-type] # each was looked at by _plain


def _plain(key: str, value: object) -> object:
    if key in ("env", "env_file", "volumes", "publish"):
        if isinstance(value, Mapping):
            joint = "=" if key == "env" else ":"
            return tuple(f"{left}{joint}{right}" for left, right in value.items())
        if isinstance(value, Iterable) and not isinstance(value, str | bytes):
            return tuple(str(one) for one in value)
        raise SpecError(f"{key} is {type(value).__name__}", "a list of texts, or a mapping")
    if key in ("pids_limit", "port"):
        if type(value) is int:
            return value
        raise SpecError(f"{key} is {type(value).__name__}", "a whole number")
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise SpecError(f"{key} is {type(value).__name__}", "text or a number")
    return str(value)
