"""Measure startup to the first correct reply: each level against plain fork and exec of the same server, and peers.

    python benchmarks/startup.py [--rounds N] [--levels LIST] [--json]

All contenders run interleaved in random order. "bare" is fork, chroot into the same root filesystem, and exec, on a
loopback address that is polled every 0.5 ms. Each run begins 0.25 s after the previous one has ended, because until
then the kernel is still removing its namespaces, which would slow the next one down. Peers are run as their users
would, if they are installed: bwrap and unshare share the host's network, docker is on the lab network with the same
limits.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import common
from sandbox import images, isolation
from sandbox.errors import SandboxError
from sandbox.lifecycle import start
from sandbox.lifecycle import warm as warm_pool
from sandbox.lifecycle.remove import remove
from sandbox.network.lab import DOCKER_NETWORK
from sandbox.request import resolve
from sandbox.spec import DEFAULT_PORT, SandboxSpec

BARE = "bare fork + exec"
SHELL = "shell: sandbox run -d, namespace"
DOCKER = "peer: docker run -d"
PAUSE = 0.25
"""Seconds."""
TARGETS = (
    ("namespace", BARE, 1.25),
    ("namespace", "peer: bwrap, host network", 1.1),
    ("namespace", "peer: runc, host network", 0.45),
    ("container", DOCKER, 0.95),
    (SHELL, DOCKER, 0.5),
    ("namespace, warm", "namespace", 0.4),
)
"""(contender, baseline, upper bound of the ratio)"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--levels", default=",".join(isolation.LEVELS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--warm", default="", metavar="LIST", help="levels to start warm as well")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    root = common.root()
    contenders: dict[str, Callable[[], float]] = {BARE: lambda: bare(root)}
    levels = options.levels.split(",") if options.levels else []
    for level in levels:
        contenders[level] = lambda level=level: sandboxed(level)  # type: ignore[misc]
    contenders |= peers(root)
    if "namespace" in levels:
        contenders[SHELL] = from_the_shell
    with ExitStack() as stack:
        if levels or DOCKER in contenders:
            stack.enter_context(lab())
        if DOCKER in contenders:  # it uses our Docker network, which the lab's first container creates
            with start.running(_spec("container")):
                pass
        for level in options.warm.split(",") if options.warm else []:
            contenders[f"{level}, warm"] = lambda level=level: warm(level)  # type: ignore[misc]
            stack.callback(warm_pool.stop, (level,))
        series = common.interleave(contenders, options.rounds, options.seed, pause=PAUSE)
    common.report("startup to the first reply", "ms", series, _baselines(contenders), as_json=options.json, scale=1000)
    if not options.json:
        common.report_ratios("targets", series, TARGETS)


def _baselines(contenders: Iterable[str]) -> dict[str, str]:
    return dict.fromkeys(contenders, BARE)


@contextmanager
def lab() -> Iterator[None]:
    """Keep the lab network up from another process, so that this one stays as small as a command of the shell.

    Making the bridge imports 30 MB, whose page tables would be copied by every clone of this process.
    """
    program = "import sys; from sandbox.lifecycle import lab\nwith lab.use(): print(); sys.stdin.read()"
    holder = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdin is not None
    assert holder.stdout is not None
    try:
        if not holder.stdout.readline():
            raise SandboxError("the lab network could not be made")
        yield
    finally:
        holder.stdin.close()
        holder.wait()
        holder.stdout.close()


def bare(root: str) -> float:
    """Return the seconds from the fork to the first reply."""
    port = common.free_port()
    begin = time.monotonic()
    pid = common.spawn_chrooted(root, common.server_argv(port))
    try:
        common.wait_for_reply(port)
        return time.monotonic() - begin
    finally:
        common.end(pid)


def _spec(level: str) -> SandboxSpec:
    return resolve.make(common.WORKLOAD, level).spec


def sandboxed(level: str) -> float:
    """Return the seconds from the request to the first reply, by the sandbox's timeline."""
    with start.running(_spec(level)) as running:
        return running.record.timeline.total()


def warm(level: str) -> float:
    """Measure as `sandboxed` does, by a warm start that is prepared before the clock starts."""
    spec = _spec(level)
    warm_pool.fill(spec, 1, start.silent)
    running = warm_pool.start_warm(spec, progress=start.silent, owner=True, then=None)
    try:
        return running.record.timeline.total()
    finally:
        remove(running, force=True)


def from_the_shell() -> float:
    """Return the seconds that `sandbox run -d` takes until it returns, after the first reply."""
    name = f"bench-{os.getpid()}"
    script = Path(sys.executable).with_name("sandbox")
    begin = time.monotonic()
    try:
        started = subprocess.run(
            [str(script), "run", "-d", "--name", name, common.WORKLOAD],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        took = time.monotonic() - begin
        if started.returncode:
            raise SandboxError(f"sandbox run: {started.stderr.strip()}")
        return took
    finally:
        subprocess.run([str(script), "rm", "-f", name], capture_output=True, check=False, timeout=60)


def peers(root: str) -> dict[str, Callable[[], float]]:
    """Return contenders for other sandboxing tools that are installed on this host."""
    found: dict[str, Callable[[], float]] = {}
    if shutil.which("unshare"):
        prefix = ["unshare", "--mount", "--pid", "--fork", "--ipc", "--uts", "--cgroup", f"--root={root}", "--"]
        found["peer: unshare, host network"] = lambda: command(prefix)
    if shutil.which("bwrap"):
        bwrap = ["bwrap", "--unshare-user", "--unshare-pid", "--unshare-ipc", "--unshare-uts"]
        bwrap += ["--unshare-cgroup-try", "--ro-bind", root, "/", "--proc", "/proc", "--dev", "/dev"]
        bwrap += ["--tmpfs", "/tmp", "--die-with-parent", "--"]  # noqa: S108 - inside
        found["peer: bwrap, host network"] = lambda: command(bwrap)
    for tool in ("runc", "crun"):
        if shutil.which(tool):
            found[f"peer: {tool}, host network"] = lambda tool=tool: oci(tool, root)  # type: ignore[misc]
    image = images.find(images.Form.DOCKER)
    if shutil.which("docker") and image is not None and image.reference:
        reference = image.reference
        found[DOCKER] = lambda: docker(reference)
    return found


def command(prefix: list[str]) -> float:
    """Measure a tool that runs the server as its child, on the host's network."""
    port = common.free_port()
    begin = time.monotonic()
    process = subprocess.Popen(
        [*prefix, *common.server_argv(port)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        common.wait_for_reply(port)
        return time.monotonic() - begin
    finally:
        # The tool's children are in a pid namespace, whose init ends with the tool or right after it.
        for child in _children(process.pid):
            os.kill(child, 9)
        process.kill()
        process.wait()


def oci(tool: str, root: str) -> float:
    """Measure an OCI runtime, with its own default configuration and our root and server."""
    port = common.free_port()
    with tempfile.TemporaryDirectory() as bundle:
        subprocess.run([tool, "spec", "--bundle", bundle], check=True, capture_output=True, timeout=30)
        path = Path(bundle, "config.json")
        config = json.loads(path.read_text(encoding="utf-8"))
        config["root"] = {"path": root, "readonly": True}
        config["process"] |= {"terminal": False, "args": common.server_argv(port)}
        config["linux"]["namespaces"] = [one for one in config["linux"]["namespaces"] if one["type"] != "network"]
        path.write_text(json.dumps(config), encoding="utf-8")
        name = f"bench-{os.getpid()}"
        begin = time.monotonic()
        process = subprocess.Popen(
            [tool, "run", "--bundle", bundle, name],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            common.wait_for_reply(port)
            return time.monotonic() - begin
        finally:
            subprocess.run([tool, "delete", "--force", name], capture_output=True, check=False, timeout=60)
            process.kill()
            process.wait()


def docker(reference: str) -> float:
    """Measure `docker run`, with the limits of our containers."""
    address = "198.18.250.9"
    name = f"bench-{os.getpid()}"
    argv = ["docker", "run", "-d", "--name", name, "--network", DOCKER_NETWORK, "--ip", address]
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
