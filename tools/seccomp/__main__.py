"""`python -m tools.seccomp` writes the files that are shipped; a test compares them with what it would write."""

from __future__ import annotations

from pathlib import Path

from tools.seccomp import compiler, docker

SANDBOX = Path(__file__).resolve().parents[2] / "sandbox"


def files() -> dict[Path, bytes]:
    """Each file that is shipped, and what belongs into it."""
    kernel = SANDBOX / "kernel"
    programs = {kernel / f"seccomp-{machine}.bpf": compiler.program(machine) for machine in compiler.MACHINES}
    return programs | {SANDBOX / "isolation" / "docker_seccomp.json": docker.profile().encode()}


if __name__ == "__main__":
    for path, content in files().items():
        path.write_bytes(content)
