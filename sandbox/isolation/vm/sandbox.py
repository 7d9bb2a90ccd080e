"""A sandbox that is a virtual machine."""

from __future__ import annotations

import os
import secrets
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sandbox.errors import EngineError, SandboxError, SpecError
from sandbox.failpoints import Failpoint, reached
from sandbox.interrupts import wait_readable
from sandbox.isolation import ending, supervision
from sandbox.isolation.base import Attached, ExecResult, Sandbox, State, Stats, WindowSize
from sandbox.isolation.relay import Relay, collect, to_descriptor
from sandbox.isolation.vm import output, xml
from sandbox.isolation.vm.console import BOOT, EXIT, SIGNAL, START, STOP, Console, exit_code
from sandbox.isolation.vm.domain import LOG_DIR, Hypervisor, is_paused, log_files, qemu_pid
from sandbox.isolation.vm.exec import REFUSALS, Command, refusal
from sandbox.isolation.vm.guest import TERMINAL_TYPE, Guest
from sandbox.kernel import procfs
from sandbox.network.lab import interface_name
from sandbox.spec import SANDBOX_UID, Limits
from sandbox.state.record import Record

if TYPE_CHECKING:
    from sandbox.isolation.in_force import Inspection

CLIENT_KEY = "client_key"
INITRD = "initrd"
CONSOLE = "console"
CONSOLE_LOG = "console.log"
ENDED = "ended"
"""Files in the sandbox's directory: the host's SSH key, the initramfs with the configuration, the serial console's
socket and log, and the exit code of a workload whose machine we switched off, written before that."""

ENTER = "/usr/lib/sandbox-vm/enter"

START_TIMEOUT = 30.0
"""Seconds to wait for the init's answer to the word `start`."""
SIGNAL_TIMEOUT = 10.0
"""Seconds to wait for its answer to the word `signal`."""
KILL_TIMEOUT = 2.0
"""Seconds that the guest has to shut down and report the exit code; then it is switched off."""
KILLED = 137
"""The exit code of a workload whose machine was switched off, as after SIGKILL (128 + 9)."""
FLUSH = 0.5
"""Seconds after QEMU's end within which virtlogd writes the rest of the console's output."""
_QUESTION_TIMEOUT = 30.0


@dataclass(frozen=True, slots=True)
class Handle:
    """The data in the record by which later commands find the machine.

    Attributes:
        nonce: marks messages of the guest's init on the console.
        host_key: the public key of the guest's SSH server.
        domain: its name; None until libvirt is asked to create it.
    """

    nonce: str
    host_key: str
    domain: str | None = None


class VmSandbox(Sandbox):
    """A domain, its files, and the guest in it.

    Attributes:
        handle: None if the sandbox is incomplete, and has no files yet.
    """

    def __init__(self, record: Record, hypervisor: Hypervisor) -> None:
        self.record = record
        self.handle = record.read_handle(Handle)
        self._hypervisor = hypervisor
        self._console: Console | None = None
        self._guest: Guest | None = None

    # --- start ---------------------------------------------------------------------------------------------------

    def confirm_confined(self) -> None:
        """Check that QEMU does not run as root, and that it has a seccomp filter.

        Raises:
            EngineError: it runs as root, or without a filter.
        """
        process = self.record.process
        with suppress(OSError):
            if process is not None:
                status = procfs.fields(Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8"))
                if "0" in status.get("Uid", "0").split():
                    raise EngineError("QEMU runs as root", 'user = "libvirt-qemu" in /etc/libvirt/qemu.conf')
                if status.get("Seccomp") != "2":
                    raise EngineError(
                        "QEMU runs without its seccomp filter", "seccomp_sandbox = 1 in /etc/libvirt/qemu.conf"
                    )
                return
        raise EngineError("QEMU ended at once", f"see {LOG_DIR}/{xml.domain_name(self.record.id)}.log")

    def listen(self) -> None:
        """Connect to the console and the output while the guest's processors are stopped, so that nothing is missed.

        Raises:
            EngineError: QEMU has ended.
        """
        process = self.record.process
        self._console = self._talk()
        if process is not None:
            self.keeper = output.keep(self.record, self._made().nonce, process.pid)

    def boot(self, deadline: float) -> None:
        console = self._held_console()
        self._hypervisor.resume(self.record.id)
        console.wait((BOOT,), deadline, self._alive)

    def start(self) -> None:
        with self._held_console() as console:
            console.send(START)
            said = console.wait((START, *REFUSALS), time.monotonic() + START_TIMEOUT, self._alive)
        self._console = None
        if said != START:
            raise refusal(said, self.record.spec.argv[0], self.record.spec.workdir)

    def _held_console(self) -> Console:
        if self._console is None:
            raise EngineError(f"sandbox {self.record.name} was created by another command", "sandbox rm, then run anew")
        return self._console

    def _alive(self) -> bool:
        process = self.record.process
        return process is not None and process.alive()

    # --- while it runs -------------------------------------------------------------------------------------------

    def state(self) -> State:
        process = self.record.process
        if process is not None and process.alive():
            return State(running=True, pid=process.pid, paused=is_paused(self.record.id))
        return State(running=False, exit_code=self._exit_code())

    def _exit_code(self) -> int | None:
        """Return the exit code from the keeper, from the guest's init, or from our own record of switching it off."""
        if self.handle is None:
            return None
        directory = self.record.directory
        found = ending.read(directory)
        if found is not None and found.code is not None:
            return found.code
        code = exit_code(directory / CONSOLE_LOG, self.handle.nonce)
        if code is None:
            with suppress(OSError, ValueError):
                return int((directory / ENDED).read_text(encoding="ascii"))
        return code

    def _refuse_ended(self) -> None:
        if not self._alive():
            raise EngineError(f"sandbox {self.record.name} is not running")

    def _inside(self) -> Guest:
        self._refuse_ended()
        if is_paused(self.record.id):
            raise EngineError(f"sandbox {self.record.name} is paused", f"sandbox unpause {self.record.name}")
        if self._guest is None:
            key = self.record.directory / CLIENT_KEY
            self._guest = Guest(self.record.address, self._made().host_key, key, self._alive)
        return self._guest

    def _ask(self, command: str) -> str:
        """Run a command as the guest's root, and return its output.

        Raises:
            EngineError: it failed, or there was no answer.
        """
        try:
            done = self._inside().run(command, _QUESTION_TIMEOUT)
        except TimeoutError:
            raise EngineError(f"the guest of {self.record.name} does not answer") from None
        if done.exit_code != 0:
            said = done.stderr.decode("utf-8", "replace").strip()
            raise EngineError(f"a command in the guest of {self.record.name} failed: {said}")
        return done.stdout.decode("utf-8", "replace")

    def limits(self) -> Limits:
        live = self._hypervisor.live(self.record.id)
        if live is None:
            raise EngineError(f"sandbox {self.record.name} is not running")
        pids, block, blocks = self._ask(f"cat {xml.GUEST_GROUP}/pids.max && stat -f -c '%S %b' /tmp").split()
        cpus = float(live.vcpus) if live.quota is None else live.quota
        return Limits(
            cpus,
            live.memory,
            int(pids) if pids.isdigit() else None,
            "live domain + guest cgroup v2",
            disk=int(block) * int(blocks),
        )

    def _command(
        self, name: str, argv: Sequence[str], *, root: bool, env: Sequence[tuple[str, str]], directory: str
    ) -> str:
        """Return a command line for the guest's root shell that runs a command through vm/guest/enter.

        Raises:
            SpecError: it contains NUL, which is impossible in an argument or variable.
        """
        entries = [f"{key}={value}" for key, value in env]
        uid = "0" if root else str(SANDBOX_UID)
        line = shlex.join([ENTER, name, uid, directory, str(len(entries)), *entries, *argv])
        if "\0" in line:
            raise SpecError("the command or its environment contains a NUL byte", "use text without NUL")
        return line

    def _ender(self, guest: Guest, name: str) -> Callable[[], None]:
        """Return a function that kills a command and its children, which have a control group of their own."""
        group = f"{xml.GUEST_GROUP}/exec-{name}"

        def end() -> None:
            with suppress(EngineError, TimeoutError):
                if self._alive() and not is_paused(self.record.id):
                    guest.run(f"echo 1 > {group}/cgroup.kill && sleep 0.1; rmdir {group}", _QUESTION_TIMEOUT)

        return end

    def _begin(
        self,
        argv: Sequence[str],
        *,
        terminal: WindowSize | None = None,
        root: bool,
        env: Sequence[tuple[str, str]] = (),
        workdir: str | None = None,
    ) -> Command:
        """Start a command inside, up to its first instruction."""
        name = secrets.token_hex(6)
        directory = workdir or self.record.spec.workdir
        guest = self._inside()
        if terminal is not None and "TERM" not in dict(env):
            env = [*env, ("TERM", TERMINAL_TYPE)]
        line = self._command(name, argv, root=root, env=env, directory=directory)
        command = guest.start(line, terminal, self._ender(guest, name))
        try:
            said = command.first_line(terminal=terminal is not None).removeprefix(f"@{name} ")
            if said != "started":
                raise refusal(said, argv[0], directory)
        except BaseException:
            command.end()
            raise
        return command

    def exec(self, argv: Sequence[str], *, timeout: float | None = None, root: bool = False) -> ExecResult:
        command = self._begin(argv, root=root)
        command.close_write()
        return collect(command, argv, timeout)

    def attach(
        self,
        argv: Sequence[str],
        *,
        stdin: int | None,
        stdout: int,
        stderr: int,
        terminal: WindowSize | None = None,
        root: bool = False,
        env: Sequence[tuple[str, str]] = (),
        workdir: str | None = None,
    ) -> Attached:
        command = self._begin(argv, terminal=terminal, root=root, env=env, workdir=workdir)
        if stdin is None and terminal is None:
            command.close_write()
        sinks = [to_descriptor(descriptor) for descriptor in (stdout, stderr)]
        return Relay(command, stdin=stdin, stdout=sinks[0], stderr=sinks[1], terminal=terminal is not None)

    def resources(self) -> dict[str, Any]:
        return {"domain": xml.domain_name(self.record.id), "host_key": self.handle and self.handle.host_key}

    def inspection(self) -> Inspection:
        from sandbox.isolation.vm import inspection  # no start pays for the form

        state = self.state()
        answer: str | None = None
        limits: Limits | None = None
        description = self._hypervisor.description(self.record.id) if state.running else None
        if state.running and not state.paused:
            with suppress(SandboxError):  # None, if it does not answer
                answer = self._ask(inspection.QUESTION)
                limits = self.limits()
        console_log = self.record.directory / CONSOLE_LOG
        return inspection.inspect(self.record, answer, description, state, limits, console_log)

    def stats(self) -> Stats:
        live = self._hypervisor.live(self.record.id)
        traffic = self._hypervisor.traffic(self.record.id, interface_name(self.record.id))
        if live is None or traffic is None:
            return Stats(None, None, None)
        pids: int | None = None
        with suppress(SandboxError, ValueError):  # None, if the guest does not answer
            pids = int(self._ask(f"cat {xml.GUEST_GROUP}/pids.current"))
        return Stats(
            live.cpu_seconds,
            live.resident,
            pids,
            received=traffic.received,
            sent=traffic.sent,
            read=traffic.read,
            written=traffic.written,
        )

    def pause(self) -> None:
        self._refuse_ended()
        self._hypervisor.suspend(self.record.id)

    def unpause(self) -> None:
        self._refuse_ended()
        self._hypervisor.resume(self.record.id)

    # --- end -----------------------------------------------------------------------------------------------------

    def kill(self, number: int) -> None:
        self._refuse_ended()
        if not 1 <= number <= signal.SIGRTMAX:
            raise EngineError(f"{number} is not the number of a signal", f"1 to {int(signal.SIGRTMAX)}")
        if number == signal.SIGKILL:
            self._kill()
            return
        if is_paused(self.record.id):
            raise EngineError(
                f"sandbox {self.record.name} is paused and takes no signal but SIGKILL",
                f"sandbox unpause {self.record.name}",
            )
        with self._talk() as console:
            console.send(f"{SIGNAL} {number}")
            try:
                console.wait((SIGNAL, EXIT), time.monotonic() + SIGNAL_TIMEOUT, self._alive)
            except EngineError:
                if self._alive():
                    raise  # otherwise the signal ended it before it could answer

    def _kill(self) -> None:
        """End the sandbox through its init, which reports that, or else through libvirt."""
        self._leave()
        if not is_paused(self.record.id):
            with suppress(EngineError, TimeoutError), self._talk() as console:
                console.send(f"{SIGNAL} {int(signal.SIGKILL)}")
                self.wait(KILL_TIMEOUT)
                return
        self._switch_off()

    def _switch_off(self) -> None:
        """Kill QEMU, which the guest cannot prevent."""
        with suppress(OSError):  # if the disk is full, the exit code is lost, but the machine must still end
            (self.record.directory / ENDED).write_text(f"{KILLED}\n", encoding="ascii")
        self._hypervisor.destroy(self.record.id)

    def _talk(self) -> Console:
        return Console(self.record.directory / CONSOLE, self._made().nonce)

    def _made(self) -> Handle:
        if self.handle is None:
            raise EngineError(f"sandbox {self.record.name} is incomplete", f"sandbox rm {self.record.name}")
        return self.handle

    def wait(self, timeout: float | None = None) -> int | None:
        process = self.record.process
        if process is not None and process.alive():
            try:
                descriptor = os.pidfd_open(process.pid)
            except ProcessLookupError:
                descriptor = None
            if descriptor is not None:
                try:
                    if process.alive() and not wait_readable(descriptor, timeout):
                        raise TimeoutError(f"sandbox {self.record.name} still runs after {timeout:g} s")
                finally:
                    os.close(descriptor)
        return self._final_code()

    def _final_code(self) -> int | None:
        """Return the exit code, after waiting a moment for the logs to be written."""
        ending.wait(self.record.directory)
        deadline = time.monotonic() + FLUSH
        while True:
            code = self._exit_code()
            if code is not None or time.monotonic() >= deadline or self.handle is None:
                return code
            time.sleep(0.02)

    def stop(self, grace: float) -> int | None:
        self._leave()
        if self._alive():
            try:
                with self._talk() as console:
                    console.send(STOP)
                    if is_paused(self.record.id):
                        self._hypervisor.resume(self.record.id)
                    return self.wait(grace)
            except (EngineError, TimeoutError):
                # The guest does not react, or does not end.
                self._switch_off()
        return self._final_code()

    def _leave(self) -> None:
        """Close the connections to the guest."""
        if self._console is not None:
            self._console.close()
            self._console = None
        if self._guest is not None:
            self._guest.close()
            self._guest = None

    def remove(self) -> None:
        self._leave()
        directory = self.record.directory
        supervision.silence(directory)
        # Without a domain's name in the record, libvirt was never asked for one (or the record was not saved: then
        # `prune` finds the domain), and the rest can be removed even on a host without libvirt.
        if (self.handle and self.handle.domain) or qemu_pid(self.record.id) is not None:
            self._hypervisor.destroy(self.record.id)
        reached(Failpoint.DOMAIN_REMOVED)
        try:
            supervision.wait_gone(directory)
            for path in log_files(self.record.id):
                path.unlink(missing_ok=True)
        except OSError as error:  # TimeoutError is one
            raise EngineError(f"the machine's remains could not be removed: {error}") from error
        if self.keeper is not None:
            self.keeper.wait_exit_code(0)
            self.keeper.close()
