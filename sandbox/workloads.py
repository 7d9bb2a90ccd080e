"""The workloads that a sandbox can run: what each is, and the command that runs it inside.

A workload describes itself: its module in `workloads/servers/` holds the summary, the section and the picture. They are
read from the source text, without importing it, because in an installed wheel `workloads` is data, not a package.
"""

from __future__ import annotations

from dataclasses import dataclass

from sandbox.errors import NotFoundError, SpecError
from sandbox.state.data import data_dir

INSTALLED_AT = "/opt/sandbox/workloads"
"""Where the root filesystem has the folder `workloads/`."""

PYTHON = ("/usr/bin/python3", "-I", "-S")
"""Isolated and without site: nothing of the environment is read, and start-up is 5 ms shorter (python3(1))."""


@dataclass(frozen=True, slots=True)
class Workload:
    """What a workload says of itself.

    Attributes:
        name: what `sandbox run` takes.
        summary: one line.
        section: the sections of the study notes that it comes from, such as "2.8.5, 2.8.6".
        picture: the concurrency model drawn in text, several lines.
    """

    name: str
    summary: str
    section: str
    picture: str


def names() -> list[str]:
    """Every workload's name, sorted."""
    folder = data_dir("workloads") / "servers"
    return sorted(path.stem for path in folder.glob("*.py") if path.stem != "__init__")


def describe(name: str) -> Workload:
    """What the workload's module says of itself.

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
    """The command inside the root filesystem, without the init.

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
    """The arguments of a server in a command of `argv`: its name first.

    Raises:
        SpecError: the command is none of ours.
    """
    start = (*PYTHON, f"{INSTALLED_AT}/__main__.py")
    if command[: len(start)] != start:
        raise SpecError("a warm start runs the reference servers only", "sandbox workloads lists them")
    return command[len(start) :]


def _check(name: str) -> None:
    known = names()
    if name not in known:
        raise NotFoundError(f"no workload is called {name!r}", "one of " + ", ".join(known))
