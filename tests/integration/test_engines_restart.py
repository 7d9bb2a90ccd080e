"""Engines that stop, crash and come back while sandboxes run: what is said meanwhile is right, and nothing is left.

dockerd is one of the test's own, beside the host's: its own data, its own socket. A second libvirtd would share QEMU's
directories with the first, so the host's is restarted, where `sandbox doctor --fix` started it and nobody else uses it.
"""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from sandbox import images
from sandbox.errors import SandboxError, UnavailableError
from sandbox.host import daemons
from sandbox.host.docker import socket_path
from sandbox.kernel import syscalls
from sandbox.state import files
from sandbox.state.processid import ProcessId
from sandbox.state.store import Store
from tests import leaks
from tests.verbs import Manager, Running

ROOT = Path(__file__).resolve().parents[2]
NAME = "restarted"
# The SDK's pool drops connections to a dockerd that went away without closing them; they are collected here, and not in
# the middle of a later test.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def cli(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sandbox", *argv], cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
    )


def served(running: Running) -> bool:
    with urllib.request.urlopen(str(running.url), timeout=20) as reply:
        return bool(reply.status == 200)


def listed(*flags: str) -> list[str]:
    """Names that `sandbox ps` prints, which must succeed whatever the engine does."""
    done = cli("ps", *flags)
    assert done.returncode == 0, done.stderr
    return [line.split()[1] for line in done.stdout.splitlines()[1:]]


def one_line(done: subprocess.CompletedProcess[str]) -> bool:
    return done.returncode == 125 and done.stderr.startswith("sandbox: ") and done.stderr.count("\n") == 1


class OwnDockerd:
    """A dockerd with its data, state and socket in a directory of its own, and no bridge nor firewall rules."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.socket = root / "docker.sock"
        (root / "daemon.json").write_text("{}")
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, live: bool) -> None:
        argv = ["dockerd", "--config-file", str(self.root / "daemon.json"), "-H", f"unix://{self.socket}"]
        argv += ["--data-root", str(self.root / "data"), "--exec-root", str(self.root / "exec")]
        argv += ["--pidfile", str(self.root / "pid"), "--bridge", "none", "--iptables=false", "--ip6tables=false"]
        if live:
            argv.append("--live-restore")
        with (self.root / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while not self._answers():
            assert self._process.poll() is None, (self.root / "log").read_text()[-2000:]
            assert time.monotonic() < deadline, (self.root / "log").read_text()[-2000:]
            time.sleep(0.1)

    def _answers(self) -> bool:
        command = ["docker", "-H", f"unix://{self.socket}", "version"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0

    def end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(60)
            self._process = None
            self._forget_containerd()

    def _forget_containerd(self) -> None:
        """dockerd's containerd dies with it, but its pid file stays, and its zombie does where init reaps slowly.

        The next dockerd would take that zombie for its containerd, and give up after 15 s.
        """
        record = self.root / "exec" / "containerd" / "containerd.pid"
        with suppress(OSError, ValueError):
            process = ProcessId.of(int(record.read_text()))
            deadline = time.monotonic() + 20
            while process is not None and process.alive():
                assert time.monotonic() < deadline, "containerd outlives its dockerd"
                time.sleep(0.05)
            record.unlink()

    def clear(self) -> None:
        """End it and whatever it has started, and remove its directory."""
        self.end(signal.SIGTERM)
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    if str(self.root).encode() in (entry / "cmdline").read_bytes():
                        os.kill(int(entry.name), signal.SIGKILL)
        for mounted in reversed(files.mounts_below(self.root)):
            with suppress(OSError):
                syscalls.umount(mounted, syscalls.MNT_DETACH)
        shutil.rmtree(self.root)


@pytest.fixture(scope="module")
def dockerd() -> Iterator[OwnDockerd]:
    """Ours, with the sandboxes' image, stopped."""
    found = OwnDockerd(Path(tempfile.mkdtemp(prefix="sandbox-dockerd-", dir="/var/tmp")))
    try:
        found.start(live=False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("DOCKER_HOST", f"unix://{found.socket}")
            images.ensure(images.Form.DOCKER, lambda _: None)
        found.end(signal.SIGTERM)
        yield found
    finally:
        found.clear()


@pytest.fixture
def manager() -> Manager:
    """One that knows nothing of what earlier ones have seen of the engines."""
    return Manager()


@pytest.mark.level("container")
@pytest.mark.timeout(300)
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("live", [True, False], ids=["live-restore", "plain"])
def test_dockerd_restarts(
    dockerd: OwnDockerd, manager: Manager, live: bool, end: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{dockerd.socket}")
    before = leaks.snapshot()
    try:
        _through_a_restart(dockerd, manager, live=live, end=end)
    finally:
        dockerd.end(signal.SIGKILL)
        dockerd.start(live=False)
        with suppress(SandboxError):
            manager.remove(NAME, force=True)
        cli("prune")
        dockerd.end(signal.SIGTERM)
        gc.collect()
    left = leaks.leaked(before)
    assert not left, f"left behind: {left}"


def _through_a_restart(dockerd: OwnDockerd, manager: Manager, *, live: bool, end: signal.Signals) -> None:
    dockerd.start(live=live)
    assert str(dockerd.socket) == socket_path()
    running = manager.run(manager.make_spec("reactor", "container", name=NAME))
    assert served(running)
    dockerd.end(end)
    survives = live or end == signal.SIGKILL  # until dockerd is back: then, without live-restore, it ends them
    while_down(manager, running, survives=survives)
    dockerd.start(live=live)
    found = manager.get(NAME)
    deadline = time.monotonic() + 20
    while found.sandbox.state().running is not live and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found.sandbox.state().running is live
    assert (NAME in listed(), NAME in listed("-a")) == (live, True)
    if live:
        assert served(found)
        assert found.sandbox.exec(["/bin/echo", "hello"], timeout=30).stdout == b"hello\n"
        assert _says_again(found), "its keeper has not connected to it anew"
        assert cli("stop", NAME).returncode == 0
        assert not found.sandbox.state().running
    assert cli("rm", NAME).returncode == 0
    assert subprocess.run(["docker", "ps", "-aq"], capture_output=True, check=True).stdout == b""
    assert not Manager().store.known().__contains__(running.record.id)


def _says_again(running: Running) -> bool:
    """Whether what the workload writes from now on reaches the log."""
    deadline = time.monotonic() + 10
    while b"after the restart" not in b"".join(running.sandbox.logs()):
        if time.monotonic() > deadline:
            return False
        running.sandbox.exec(["/bin/sh", "-c", "echo after the restart >/proc/1/fd/1"], timeout=30)
        time.sleep(0.2)
    return True


def while_down(manager: Manager, running: Running, *, survives: bool) -> None:
    """What can be known without the engine is right, what cannot is refused in a line that names the engine."""
    assert (NAME in listed()) is survives
    assert NAME in listed("-a")
    if survives:
        assert served(running)
    for verb in (("exec", NAME, "true"), ("stop", NAME), ("rm", "-f", NAME)):
        done = cli(*verb)
        assert one_line(done), (verb, done)
    assert cli("logs", NAME).returncode == 0, "the log is the keeper's"
    with pytest.raises(UnavailableError):
        manager.get(NAME).sandbox.exec(["true"], timeout=10)
    with pytest.raises(SandboxError):
        manager.remove(NAME, force=True)
    assert manager.get(NAME).record.id == running.record.id, "what could not be removed is still known"


# --- libvirt ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def machine() -> Iterator[Running]:
    """A virtual machine; one for both tests, for it takes its time to boot."""
    before = leaks.snapshot()
    manager = Manager()
    running = manager.run(manager.make_spec("reactor", "vm", name=NAME))
    try:
        yield running
    finally:
        with suppress(SandboxError):
            manager.remove(NAME, force=True)
    left = leaks.leaked(before)
    assert not left, f"left behind: {left}"


@pytest.mark.level("vm")
@pytest.mark.timeout(300)
def test_libvirtd_restarts(machine: Running, manager: Manager) -> None:
    if daemons.running("libvirtd") is None:
        pytest.skip("libvirtd was not started by sandbox doctor --fix: it is not ours to restart")
    if leaks.domains() != {f"sbx-{machine.record.id}"}:
        pytest.skip("others have virtual machines on this libvirtd")
    process = machine.record.process
    daemons.stop("libvirtd")
    try:
        assert NAME in listed()
        assert served(machine), "QEMU does not need libvirtd to run"
        for verb in (("rm", "-f", NAME), ("pause", NAME)):
            done = cli(*verb)
            assert one_line(done), (verb, done)
        assert manager.get(NAME).record.id == machine.record.id
    finally:
        cli("doctor", "--fix")
    assert daemons.running("libvirtd") is not None
    found = manager.get(NAME)
    assert found.sandbox.state().running
    assert found.record.process == process
    assert served(found)
    assert found.sandbox.limits().memory == machine.record.spec.memory
    assert found.sandbox.exec(["/bin/echo", "hello"], timeout=60).stdout == b"hello\n"
    assert not [line for line in manager.prune() if NAME in line]
    assert served(found)


@pytest.mark.level("vm")
def test_a_machine_whose_qemu_is_killed(machine: Running, manager: Manager) -> None:
    process = machine.record.process
    assert process is not None
    assert process.alive()
    os.kill(process.pid, signal.SIGKILL)
    assert machine.sandbox.wait(10) is None
    assert not manager.get(NAME).sandbox.state().running
    assert (NAME in listed(), NAME in listed("-a")) == (False, True)
    assert one_line(cli("exec", NAME, "true"))
    assert cli("stop", NAME).returncode == 0
    assert cli("rm", NAME).returncode == 0
    assert not Store().known().__contains__(machine.record.id)
    assert f"sbx-{machine.record.id}" not in leaks.domains()
