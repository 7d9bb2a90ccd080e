"""Measure a Vagrant machine as a row of a comparison: `vagrant up` with the repository's Vagrantfile.

It is not an isolation level. It has the same processor and memory as a sandbox and is pinned to the same CPU, but it
lacks the limits and checks of the level `vm`. Its load comes from the host's own network namespace, as the generator's
has no route to it.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from sandbox import host
from sandbox.errors import EngineError, SpecError, UnavailableError
from sandbox.images import vagrant as vmbox
from sandbox.interrupts import deferred
from sandbox.measure import load
from sandbox.network import vagrant
from sandbox.results import Caveat, LevelInfo
from sandbox.state import paths
from sandbox.state.store import Store, named_lock

NAME = "vagrant"
VAGRANTFILE = Path(__file__).resolve().parents[2] / "Vagrantfile"
UP_TIMEOUT = 240.0
"""Seconds that `vagrant up` may take; an emulated machine takes about 15."""
REPLY_TIMEOUT = 30.0
"""Maximum seconds from the end of `vagrant up` to the first reply."""
_PATIENCE = 20.0
"""Seconds that an interrupted Vagrant has to clean up."""
_OUTPUT = "output"
CAVEAT = Caveat(
    "vagrant",
    "the Vagrant machine is not an isolation level: its only limits are its CPU and its memory, its startup ends with "
    "the first reply after `vagrant up` has returned, and its load comes from the host's own network namespace",
)

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Machine:
    """A running machine.

    Attributes:
        address: address of the machine on Vagrant's network.
        port: port of its server.
        startup: seconds from the start of `vagrant up` to the first reply after its end.
        emulated: whether QEMU emulates its processor.
    """

    address: str
    port: int
    startup: float
    emulated: bool


def check(workload: str) -> None:
    """Check that the Vagrant box serves a workload.

    Raises:
        SpecError: it serves another one.
    """
    if workload != vmbox.WORKLOAD:
        raise SpecError(
            f"the Vagrant machine serves {vmbox.WORKLOAD}, not {workload}", f"sandbox compare {vmbox.WORKLOAD}"
        )


def info() -> LevelInfo:
    """Return the row, before a machine has run."""
    missing = host.missing_extra(NAME)
    if missing:
        reasons = "; ".join(lack.reason for lack in missing)
        return LevelInfo(NAME, NAME, emulated=False, available=False, reason=reasons, remedy=missing[0].remedy)
    return labelled(emulated=not host.kvm_works())


def labelled(*, emulated: bool) -> LevelInfo:
    """Return the row of a machine, labelled by its accelerator."""
    label = f"{NAME} (TCG, emulated)" if emulated else f"{NAME} (KVM)"
    return LevelInfo(NAME, label, emulated=emulated, available=True, reason=None, remedy=None)


@dataclass(frozen=True, slots=True)
class Project:
    """A folder with the Vagrantfile and a home directory for Vagrant, separate from the user's."""

    folder: Path
    cpu: int
    progress: Progress

    @contextmanager
    def machine(self) -> Iterator[Machine]:
        """Run a machine for the time of a block, and destroy it at the end in any case.

        Raises:
            EngineError: Vagrant failed, or the machine does not reply.
            UnavailableError, ImageError: there is no box, and none could be made.
        """
        vmbox.ensure(self.progress)
        try:
            self.progress("vagrant up")
            begin = time.monotonic()
            words = self._up()
            address = self._address()
            _await_reply(address)
            startup = time.monotonic() - begin
            yield Machine(address, vmbox.PORT, startup, emulated="Domain type:       kvm" not in words)
        finally:
            self.progress("vagrant destroy")
            with deferred():
                vagrant.destroy(self.folder)

    def _up(self) -> str:
        """Run `vagrant up` in a separate session, which the terminal's Ctrl-C does not reach: `_end` interrupts it."""
        environment = vagrant.environment(
            self.folder,
            SANDBOX_VAGRANT_PORT=str(_free_port()),
            SANDBOX_VAGRANT_CPUS=str(self.cpu),
            SANDBOX_VAGRANT_DRIVER="kvm" if host.kvm_works() else "qemu",
        )
        output = self.folder / _OUTPUT
        with output.open("wb") as stream:
            process = subprocess.Popen(
                # If we are killed, it is killed too, so that `prune` finds a machine that does not change any more.
                ["setpriv", "--pdeathsig", "KILL", "vagrant", "up", "--provider", "libvirt"],
                cwd=self.folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        try:
            code = process.wait(UP_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise EngineError(f"vagrant up did not end within {UP_TIMEOUT:.0f} s") from None
        finally:
            with deferred():
                _end(process)
        words = output.read_text(encoding="utf-8", errors="replace")
        if code:
            said = [line for line in words.splitlines() if line.strip()] or [f"exit code {code}"]
            raise EngineError(f"vagrant up: {said[-1]}")
        return words

    def _address(self) -> str:
        words = vagrant.virsh("domifaddr", vagrant.domain_name(self.folder), "--source", "lease")
        found = re.search(r"\sipv4\s+([0-9.]+)/", words)
        if found is None:
            raise EngineError("libvirt does not know the address of the Vagrant machine")
        return found[1]


@contextmanager
def project(cpu: int, progress: Progress) -> Iterator[Project]:
    """Create a project for the time of a block; one that a killed comparison left is removed first.

    Args:
        cpu: the host's CPU for the machines.
        progress: called with each step.

    Raises:
        BusyError: another comparison has a project.
        UnavailableError: there is no Vagrantfile.
        EngineError: the project could not be removed at the end; `prune` finds it.
    """
    if not VAGRANTFILE.is_file():
        raise UnavailableError("the Vagrantfile is not part of this installation", "use a checkout of the repository")
    Store().ensure()
    with named_lock(vagrant.COMPARE_LOCK, wait=False):
        vagrant.clear()
        folder = paths.vagrant_dir()
        folder.mkdir(mode=0o700, parents=True)
        try:
            (folder / VAGRANTFILE.name).symlink_to(VAGRANTFILE)
            yield Project(folder, cpu, progress)
        finally:
            vagrant.clear()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a running Vagrant so that it cleans up, and kill it if that takes too long."""
    for number, patience in ((signal.SIGINT, _PATIENCE), (signal.SIGKILL, None)):
        if process.poll() is not None:
            return
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience)


def _await_reply(address: str) -> None:
    deadline = time.monotonic() + REPLY_TIMEOUT
    while True:
        try:
            load.fetch(address, vmbox.PORT, "/", connect=load.host_socket)
            return
        except EngineError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
