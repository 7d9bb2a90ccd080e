"""Startup to the first correct reply: each level against a plain fork and exec of the same server, and peers.

    python benchmarks/startup.py [--rounds N] [--levels LIST] [--json]

All in one run, interleaved in random order. "bare" is fork, chroot into the same root filesystem, exec, on a loopback
address; it is asked every 0.5 ms. Peers are what people would type, where installed: bwrap and unshare share the
host's network, docker is on the lab's network with the same limits.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from sandbox import images, isolation, network
from sandbox.errors import SandboxError
from sandbox.manager import Manager
from sandbox.spec import DEFAULT_PORT

BARE = "bare fork + exec"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--levels", default=",".join(isolation.LEVELS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    manager = Manager()
    root = common.root()
    contenders: dict[str, Callable[[], float]] = {BARE: lambda: bare(root)}
    for level in options.levels.split(","):
        contenders[level] = lambda level=level: sandboxed(manager, level)  # type: ignore[misc]
    contenders |= peers(root)
    needs_lab = manager.lab() if options.levels else nullcontext()
    with needs_lab:
        series = common.interleave(contenders, options.rounds, options.seed)
    baselines = dict.fromkeys(contenders, BARE)
    common.report("startup to the first reply", "ms", series, baselines, as_json=options.json, scale=1000)


def bare(root: str) -> float:
    """Seconds from the fork to the reply."""
    port = common.free_port()
    begin = time.monotonic()
    pid = common.spawn_chrooted(root, common.server_argv(port))
    try:
        common.wait_for_reply(port)
        return time.monotonic() - begin
    finally:
        common.end(pid)


def sandboxed(manager: Manager, level: str) -> float:
    """Seconds from the request to the reply, by the manager's own timeline."""
    with manager.running(manager.make_spec(common.WORKLOAD, level)) as running:
        return running.timeline.total()


def peers(root: str) -> dict[str, Callable[[], float]]:
    """Other tools on this host that put a wall around a command."""
    found: dict[str, Callable[[], float]] = {}
    if shutil.which("unshare"):
        walls = ["unshare", "--mount", "--pid", "--fork", "--ipc", "--uts", "--cgroup", f"--root={root}", "--"]
        found["peer: unshare, host network"] = lambda: command(walls)
    if shutil.which("bwrap"):
        walls_of_bwrap = ["bwrap", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
        walls_of_bwrap += ["--unshare-cgroup-try", "--ro-bind", root, "/", "--proc", "/proc", "--dev", "/dev"]
        walls_of_bwrap += ["--tmpfs", "/tmp", "--die-with-parent", "--"]  # noqa: S108 - inside
        found["peer: bwrap, host network"] = lambda: command(walls_of_bwrap)
    image = images.find(images.Form.DOCKER)
    if shutil.which("docker") and image is not None and image.reference:
        reference = image.reference
        found["peer: docker run -d"] = lambda: docker(reference)
    return found


def command(walls: list[str]) -> float:
    """A tool that runs the server as its child, on the host's network."""
    port = common.free_port()
    begin = time.monotonic()
    process = subprocess.Popen(
        [*walls, *common.server_argv(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        common.wait_for_reply(port)
        return time.monotonic() - begin
    finally:
        # The tool's children are in a pid namespace of its own, whose init dies with it or at once after.
        for child in _children(process.pid):
            os.kill(child, 9)
        process.kill()
        process.wait()


def docker(reference: str) -> float:
    """What a user of docker would type, with the limits of our own containers."""
    address = "198.18.250.9"
    name = f"bench-{os.getpid()}"
    argv = ["docker", "run", "-d", "--name", name, "--network", network.DOCKER_NETWORK, "--ip", address]
    argv += ["--cpus=1", "--memory=256m", "--pids-limit=128", "--read-only", "--cap-drop=ALL", reference]
    server = common.server_argv(DEFAULT_PORT)
    server[server.index("127.0.0.1")] = "0.0.0.0"  # noqa: S104 - of the container
    begin = time.monotonic()
    started = subprocess.run([*argv, *server], capture_output=True, text=True, check=False, timeout=60)
    try:
        if started.returncode:
            raise SandboxError(f"docker run: {started.stderr.strip().splitlines()[-1]}")
        common.wait_for_reply(DEFAULT_PORT, address=address)
        return time.monotonic() - begin
    finally:
        subprocess.run(["docker", "rm", "-f", name], capture_output=True, check=False, timeout=60)


def _children(pid: int) -> list[int]:
    try:
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(word) for word in text.split()]


if __name__ == "__main__":
    main()
