"""`python -m tools.seccomp` writes the files that are shipped; a test compares them with what it would write."""

from __future__ import annotations

from pathlib import Path

from tools.seccomp import compiler, docker

SANDBOX = Path(__file__).resolve().parents[2] / "sandbox"


def files() -> dict[Path, bytes]:
    """Each file that is shipped, and what belongs into it."""
    kernel = SANDBOX / "kernel"
    programs = {kernel / f"seccomp-{machine}.hex": lines(compiler.program(machine)) for machine in compiler.MACHINES}
    return programs | {SANDBOX / "isolation" / "docker" / "seccomp.json": docker.profile().encode()}


def lines(program: bytes) -> bytes:
    """A program in hexadecimal, one instruction a line, so that a change can be read."""
    return "".join(program[at : at + 8].hex() + "\n" for at in range(0, len(program), 8)).encode()


if __name__ == "__main__":
    for path, content in files().items():
        path.write_bytes(content)
