"""Load an application: a directory with a `sandbox.toml` that says how to run it, see docs/applications.md.

The file may come from another user, so its size is limited and it is checked strictly against its schema. An unknown
key is an error, because it is usually a typing mistake.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sandbox.errors import NotFoundError, SpecError
from sandbox.request import parse
from sandbox.spec import APP_DIR

FILE = "sandbox.toml"
MAX_FILE = 64 * 1024
"""Bytes. A sandbox.toml has a few hundred."""
MAX_PATTERNS, MAX_PATTERN, MAX_DOUBLE_STARS = 256, 1024, 2
"""Limits on `files`: each entry of the directory is compared with each pattern, and `**` tries every depth."""
_KEYS = ("command", "port", "ready_path", "workdir", "files", "env", "limits")
_LIMITS = ("cpus", "memory", "pids", "disk")


@dataclass(frozen=True, slots=True)
class Application:
    """The content of a `sandbox.toml`. None stands for the default; limits are strings in the notation of the flags.

    Attributes:
        directory: absolute, without symbolic links.
        command: the program and its arguments.
        port: TCP port that it listens on; None if it serves nothing.
        ready_path: HTTP path that is answered with 200 once it serves.
        workdir: absolute path inside that it starts in.
        files: patterns, relative to the directory, of the files that it needs; None for all but hidden ones.
        env: environment variables.
        cpus, memory, disk: limits.
        pids: limit on processes and threads.
    """

    directory: Path
    command: tuple[str, ...]
    port: int | None = None
    ready_path: str = "/"
    workdir: str = APP_DIR
    files: tuple[str, ...] | None = None
    env: dict[str, str] = field(default_factory=dict)
    cpus: str | None = None
    memory: str | None = None
    pids: int | None = None
    disk: str | None = None

    @property
    def path(self) -> Path:
        """The path of the file."""
        return self.directory / FILE


def load(directory: str | os.PathLike[str]) -> Application:
    """Read a directory's `sandbox.toml`.

    Raises:
        NotFoundError: there is no such directory, or no `sandbox.toml` in it.
        SpecError: it is not a regular file, too large, not UTF-8, not TOML, or does not match the schema.
    """
    import tomllib  # 10 ms, and only applications need it

    try:
        text = _read(os.fspath(directory))
        raw = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        words = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise SpecError(f"{_shown(directory)}/{FILE} is not TOML: {words}", "see https://toml.io") from None
    return _Reader(f"{_shown(directory)}/{FILE}").application(Path(os.path.realpath(directory)), raw)


def _shown(directory: str | os.PathLike[str]) -> str:
    return "".join(c if c.isprintable() else "?" for c in os.fspath(directory).rstrip("/")) or "/"


def _read(directory: str) -> str:
    shown = _shown(directory)
    try:
        folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(f"there is no directory {shown}", "give a directory with a sandbox.toml") from None
    except (OSError, ValueError) as error:
        words = getattr(error, "strerror", None) or str(error)
        raise SpecError(f"{shown} cannot be opened: {words}", "give a directory with a sandbox.toml") from None
    try:
        # O_NONBLOCK: opening a named pipe that has no writer would wait for ever (fifo(7)).
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = os.open(FILE, flags, dir_fd=folder)
    except FileNotFoundError:
        raise NotFoundError(
            f"the directory {shown} has no {FILE}", 'create one with at least: command = ["python3", "server.py"]'
        ) from None
    except OSError as error:
        words = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror or str(error)
        raise SpecError(f"{shown}/{FILE} cannot be read: {words}", "it must be a regular file") from None
    finally:
        os.close(folder)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise SpecError(f"{shown}/{FILE} is not a regular file", "it must be a text file")
        data = b"" if found.st_size > MAX_FILE else os.read(descriptor, MAX_FILE + 1)
    finally:
        os.close(descriptor)
    if found.st_size > MAX_FILE or len(data) > MAX_FILE:
        raise SpecError(f"{shown}/{FILE} has {max(found.st_size, len(data))} bytes", f"at most {MAX_FILE} are allowed")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise SpecError(f"{shown}/{FILE} is not UTF-8 (byte {error.start})", "save it as UTF-8") from None


class _Reader:
    """Takes values out of parsed TOML, and names the key in the error where one has the wrong type."""

    def __init__(self, place: str) -> None:
        self._place = place

    def application(self, directory: Path, raw: dict[str, Any]) -> Application:
        self._check_keys(raw, _KEYS, "")
        if "command" not in raw:
            raise SpecError(f"{self._place} has no command", 'such as command = ["python3", "server.py"]')
        limits = self._table(raw, "limits")
        self._check_keys(limits, _LIMITS, "limits.")
        command = self._strings(raw["command"], "command", 'give a list, such as ["python3", "server.py"]')
        files = (
            self._strings(raw["files"], "files", 'give a list, such as ["server.py", "static"]')
            if "files" in raw
            else None
        )
        if files is not None and len(files) > MAX_PATTERNS:
            raise SpecError(
                f"{self._place}: files has {len(files)} entries", f"at most {MAX_PATTERNS}: name directories"
            )
        port = self._integer(raw["port"], "port", "such as 8000") if "port" in raw else None
        pids = self._integer(limits["pids"], "limits.pids", "such as 64") if "pids" in limits else None
        env = {
            name: parse.env_value(name, self._string(value, f"env.{name}", "write it in quotes"), f"{self._place}: env")
            for name, value in self._table(raw, "env").items()
        }
        parse.command(command, env.items(), f"{self._place}: command")
        return Application(
            directory=directory,
            command=command,
            port=None if port is None else parse.port(port, f"{self._place}: port"),
            ready_path=parse.ready_path(
                self._string(raw.get("ready_path", "/"), "ready_path", 'such as "/healthz"'),
                f"{self._place}: ready_path",
            ),
            workdir=parse.inside_path(
                self._string(raw.get("workdir", APP_DIR), "workdir", f'such as "{APP_DIR}"'), f"{self._place}: workdir"
            ),
            files=None if files is None else tuple(self._pattern(one) for one in files),
            env=env,
            cpus=self._quantity(limits, "cpus", "such as 0.5"),
            memory=self._quantity(limits, "memory", 'such as "128m"'),
            disk=self._quantity(limits, "disk", 'such as "64m"'),
            pids=pids,
        )

    def _check_keys(self, raw: dict[str, Any], known: Iterable[str], prefix: str) -> None:
        for key in raw:
            if key not in known:
                import difflib

                near = difflib.get_close_matches(key, known, n=1)
                hint = f"did you mean {prefix}{near[0]}?" if near else "known are " + ", ".join(known)
                raise SpecError(f"{self._place}: there is no key {parse.one_line(prefix + key)}", hint)

    def _table(self, raw: dict[str, Any], key: str) -> dict[str, Any]:
        found = raw.get(key, {})
        if not isinstance(found, dict):
            raise SpecError(f"{self._place}: {key} is {_kind(found)}", f"write a table: [{key}] on a line of its own")
        return found

    def _string(self, value: object, key: str, right: str) -> str:
        if not isinstance(value, str):
            raise SpecError(f"{self._place}: {key} is {_kind(value)}, not a string", right)
        return value

    def _strings(self, value: object, key: str, right: str) -> tuple[str, ...]:
        if not isinstance(value, list) or not value:
            raise SpecError(f"{self._place}: {key} is {_kind(value)}", right)
        return tuple(self._string(one, f"{key}[{index}]", right) for index, one in enumerate(value))

    def _integer(self, value: object, key: str, right: str) -> int:
        if type(value) is not int:
            raise SpecError(f"{self._place}: {key} is {_kind(value)}, not an integer", right)
        return value

    def _quantity(self, limits: dict[str, Any], key: str, right: str) -> str | None:
        value = limits.get(key)
        if value is None or isinstance(value, str):
            return value
        if type(value) is int or (type(value) is float and key == "cpus"):
            return str(value)
        raise SpecError(f"{self._place}: limits.{key} is {_kind(value)}", right)

    def _pattern(self, text: str) -> str:
        parts = text.rstrip("/").split("/")
        fine = text.isprintable() and 0 < len(text) <= MAX_PATTERN and parts.count("**") <= MAX_DOUBLE_STARS
        if text.startswith("/") or ".." in parts or not fine:
            raise SpecError(
                f"{self._place}: files has {parse.one_line(text)}, which is not a path in the directory",
                'give a relative path without "..", such as "static" or "**/*.py"',
            )
        return "/".join(part for part in parts if part not in ("", ".")) or "."


def _kind(value: object) -> str:
    if value == [] and isinstance(value, list):
        return "an empty list"
    names = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "a table"}
    return names.get(type(value), "a date")
