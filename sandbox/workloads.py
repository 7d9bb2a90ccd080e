"""The workloads that a sandbox can run: their descriptions, and the commands that run them inside.

The module of a workload in `workloads/servers/` contains its summary, section and picture. They are read from the
source text without importing it, because in an installed wheel `workloads` is data, not a package.
"""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.errors import NotFoundError, SpecError
from sandbox.state.data import data_dir

INSTALLED_AT = "/opt/sandbox/workloads"
"""The directory in the root filesystem that contains `workloads/`."""

PYTHON = ("/usr/bin/python3", "-I", "-S")
"""Isolated and without site, so that the environment is ignored and start-up takes 5 ms less (python3(1))."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The description of a workload.

    Attributes:
        name: name, as an argument of `sandbox run`.
        summary: one line.
        section: the sections of the study notes that describe it, such as "2.8.5, 2.8.6".
        picture: the concurrency model drawn in text, several lines.
    """

    name: str
    summary: str
    section: str
    picture: str


def names() -> list[str]:
    """Return the names of all workloads, sorted."""
    folder = data_dir("workloads") / "servers"
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def describe(name: str) -> Workload:
    """Read the description of a workload from its module.

    Raises:
        NotFoundError: there is no such workload.
    """
    import ast  # 10 ms, and only listings need it

    _check(name)
    path = data_dir("workloads") / "servers" / f"{name}.py"
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    texts = {
        target.id: str(ast.literal_eval(node.value))
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    summary = (ast.get_docstring(tree) or "").partition("\n")[0].rstrip(".")
    return Workload(name, summary, texts.get("SECTION", ""), texts.get("PICTURE", "").strip("\n"))


def argv(name: str, *, host: str, port: int) -> tuple[str, ...]:
    """Return the command that runs a workload inside the root filesystem, without the init.

    Args:
        name: one of `names()`.
        host: the IPv4 address to listen on.
        port: the TCP port to listen on, 1 to 65535.

    Raises:
        NotFoundError: there is no such workload.
        SpecError: the port is out of range.
    """
    _check(name)
    if not 1 <= port <= 65535:
        raise SpecError(f"port {port} is not a TCP port", "1 to 65535")
    # The file and not the folder: running a folder imports runpy, which costs 10 ms.
    return (*PYTHON, f"{INSTALLED_AT}/__main__.py", name, "--host", host, "--port", str(port))


def arguments(command: tuple[str, ...]) -> tuple[str, ...]:
    """Extract the arguments, the workload's name first, from a command that `argv` made.

    Raises:
        SpecError: the command is of another form.
    """
    start = (*PYTHON, f"{INSTALLED_AT}/__main__.py")
    if command[: len(start)] != start:
        raise SpecError("only the reference servers can be started warm", "sandbox workloads ls lists them")
    return command[len(start) :]


def _check(name: str) -> None:
    known = names()
    if name not in known:
        raise NotFoundError(f"there is no workload {name!r}", "one of " + ", ".join(known))
