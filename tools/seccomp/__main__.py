"""Write the seccomp files of the package: `python -m tools.seccomp`. A test checks that they are up to date."""

from __future__ import annotations

from pathlib import Path

from tools.seccomp import compiler, docker

SANDBOX = Path(__file__).resolve().parents[2] / "sandbox"


def files() -> dict[Path, bytes]:
    """Return the content of each file."""
    kernel = SANDBOX / "kernel"
    programs = {kernel / f"seccomp-{machine}.hex": lines(compiler.program(machine)) for machine in compiler.MACHINES}
    return programs | {SANDBOX / "isolation" / "docker" / "seccomp.json": docker.profile().encode()}


def lines(program: bytes) -> bytes:
    """Format a program in hexadecimal, one instruction per line, so that changes are readable."""
    return "".join(program[at : at + 8].hex() + "\n" for at in range(0, len(program), 8)).encode()


if __name__ == "__main__":
    for path, content in files().items():
        path.write_bytes(content)
