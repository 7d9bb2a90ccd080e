"""One virtual machine, from created to destroyed."""

from __future__ import annotations

import os
import re
import secrets
import select
import shlex
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from sandbox.errors import CannotInvokeError, CommandNotFoundError, EngineError, SandboxError
from sandbox.isolation import vm_console, vm_domain
from sandbox.isolation.base import ExecResult, Sandbox, State, Stats
from sandbox.isolation.vm_console import Console
from sandbox.isolation.vm_domain import Hypervisor
from sandbox.isolation.vm_guest import Guest
from sandbox.record import Record
from sandbox.spec import SANDBOX_UID, Limits

CLIENT_KEY = "client_key"
INITRD = "initrd"
CONSOLE = "console"
CONSOLE_LOG = "console.log"
"""Files in the sandbox's directory: the host's SSH key, the initramfs with the configuration, the serial console, and
what was said on it."""

ENTER = "/usr/lib/sandbox-vm/enter"
GROUP = "/sys/fs/cgroup/sandbox"
"""Paths inside the guest; vm/guest/ knows them."""

START_TIMEOUT = 30.0
"""Seconds for the init's answer to the word `start`."""
KILLED = 137
"""The exit code of what SIGKILL ended (128 + 9): the machine was switched off under the workload."""
_QUESTION_TIMEOUT = 30.0
_FLUSH = 0.5
"""Seconds after QEMU's end within which virtlogd has written what it said last."""
_CHUNK = 65536
_FOLLOW_PAUSE = 0.05


class VmSandbox(Sandbox):
    """A domain, its files, and the guest in it."""

    def __init__(self, record: Record, hypervisor: Hypervisor) -> None:
        self.record = record
        self._hypervisor = hypervisor
        self._console: Console | None = None
        self._guest: Guest | None = None

    # --- start ---------------------------------------------------------------------------------------------------

    def confirm_confined(self) -> None:
        """Check that QEMU is neither root nor without its seccomp filter.

        Raises:
            EngineError: it is.
        """
        process = self.record.process
        with suppress(OSError):
            if process is not None:
                status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
                uids, seccomp = re.search(r"^Uid:\s+(.*)$", status, re.M), re.search(r"^Seccomp:\s+(\d)", status, re.M)
                if uids is None or "0" in uids[1].split():
                    raise EngineError("QEMU runs as root", 'user = "libvirt-qemu" in /etc/libvirt/qemu.conf')
                if seccomp is None or seccomp[1] != "2":
                    raise EngineError(
                        "QEMU runs without its seccomp filter", "seccomp_sandbox = 1 in /etc/libvirt/qemu.conf"
                    )
                return
        raise EngineError("QEMU ended at once", f"see {vm_domain.LOG_DIR}/{vm_domain.domain_name(self.record.id)}.log")

    def open_console(self) -> None:
        """Connect to the console while the guest's processors still stand, so that no word of it is missed."""
        self._console = Console(self.record.directory / CONSOLE, self.record.data["nonce"])

    def boot(self, deadline: float) -> None:
        console = self._held_console()
        self._hypervisor.resume(self.record.id)
        console.wait((vm_console.BOOT,), deadline, self._alive)

    def start(self) -> None:
        with self._held_console() as console:
            console.send(vm_console.START)
            console.wait((vm_console.START,), time.monotonic() + START_TIMEOUT, self._alive)
        self._console = None

    def _held_console(self) -> Console:
        if self._console is None:
            raise EngineError(f"sandbox {self.record.name} was not made by this command", "sandbox rm it, and run anew")
        return self._console

    def _alive(self) -> bool:
        process = self.record.process
        return process is not None and process.alive()

    # --- while it runs -------------------------------------------------------------------------------------------

    def state(self) -> State:
        process = self.record.process
        if process is not None and process.alive():
            return State(running=True, pid=process.pid)
        return State(running=False, exit_code=self._exit_code())

    def _exit_code(self) -> int | None:
        nonce = self.record.data.get("nonce")
        return None if nonce is None else vm_console.exit_code(self.record.directory / CONSOLE_LOG, nonce)

    def _inside(self) -> Guest:
        if not self._alive():
            raise EngineError(f"sandbox {self.record.name} is not running")
        if self._guest is None:
            self._guest = Guest(self.record.address, self.record.data["host_key"], self.record.directory / CLIENT_KEY)
        return self._guest

    def limits(self) -> Limits:
        live = self._hypervisor.live(self.record.id)
        if live is None:
            raise EngineError(f"sandbox {self.record.name} is not running")
        pids = self._read_number(f"{GROUP}/pids.max")
        cpus = float(live.vcpus) if live.quota is None else live.quota
        return Limits(cpus, live.memory, pids, "live domain + guest cgroup v2")

    def _read_number(self, path: str) -> int | None:
        """A number in a file of the guest, None for "max".

        Raises:
            EngineError: it cannot be read.
        """
        try:
            code, out, err = self._inside().run(f"cat {shlex.quote(path)}", _QUESTION_TIMEOUT)
        except TimeoutError:
            raise EngineError(f"the guest of {self.record.name} does not answer") from None
        if code != 0:
            raise EngineError(f"the guest's {path} cannot be read: {err.decode('utf-8', 'replace').strip()}")
        text = out.strip()
        return int(text) if text.isdigit() else None

    def exec(self, argv: Sequence[str], *, timeout: float | None = None, root: bool = False) -> ExecResult:
        name = secrets.token_hex(6)
        guest = self._inside()
        command = shlex.join([ENTER, name, "0" if root else str(SANDBOX_UID), *argv])
        try:
            code, out, err = guest.run(command, timeout)
        except BaseException as error:
            # Whatever it started ends with it, and so does what that started: it has a control group of its own.
            group = f"{GROUP}/exec-{name}"
            with suppress(EngineError, TimeoutError):
                guest.run(f"echo 1 > {group}/cgroup.kill && sleep 0.1; rmdir {group}", _QUESTION_TIMEOUT)
            if isinstance(error, TimeoutError):
                raise TimeoutError(f"{argv[0]!r} took longer than {timeout:g} s") from None
            raise
        mark = f"@{name} ".encode()
        if err == mark + b"not-found\n":
            raise CommandNotFoundError(f"there is no command {argv[0]!r} inside")
        if err == mark + b"not-executable\n":
            raise CannotInvokeError(f"{argv[0]!r} cannot be executed")
        return ExecResult(code, out, err)

    def stats(self) -> Stats:
        live = self._hypervisor.live(self.record.id)
        if live is None:
            return Stats(None, None, None)
        pids: int | None = None
        with suppress(SandboxError):  # a guest that does not answer cannot be observed: None says so
            pids = self._read_number(f"{GROUP}/pids.current")
        return Stats(live.cpu_seconds, live.resident, pids)

    def logs(self, *, follow: bool = False) -> Iterator[bytes]:
        for part in vm_console.rotated(self.record.log_path)[:-1]:
            with suppress(OSError):
                yield part.read_bytes()
        yield from self._current_log(follow=follow)

    def _current_log(self, *, follow: bool) -> Iterator[bytes]:
        """The newest part of the log, and those that take its place when virtlogd rotates it meanwhile."""
        path = self.record.log_path
        try:
            stream = path.open("rb", buffering=0)
        except OSError:
            return
        ended_at: float | None = None
        try:
            while True:
                chunk = stream.read(_CHUNK)
                if chunk:
                    yield chunk
                    continue
                with suppress(OSError):
                    if path.stat().st_ino != os.fstat(stream.fileno()).st_ino:
                        stream.close()
                        stream = path.open("rb", buffering=0)
                        continue
                if not follow:
                    return
                if ended_at is None and not self._alive():
                    ended_at = time.monotonic()
                if ended_at is not None and time.monotonic() - ended_at >= _FLUSH:
                    return
                time.sleep(_FOLLOW_PAUSE)
        finally:
            stream.close()

    # --- end -----------------------------------------------------------------------------------------------------

    def wait(self, timeout: float | None = None) -> int | None:
        process = self.record.process
        if process is not None and process.alive():
            try:
                descriptor = os.pidfd_open(process.pid)
            except ProcessLookupError:
                descriptor = None
            if descriptor is not None:
                try:
                    poller = select.poll()
                    poller.register(descriptor, select.POLLIN)
                    if process.alive() and not poller.poll(None if timeout is None else timeout * 1000):
                        raise TimeoutError(f"sandbox {self.record.name} still runs after {timeout:g} s")
                finally:
                    os.close(descriptor)
        return self._final_code()

    def _final_code(self) -> int | None:
        """The exit code, with a moment's patience for the log to be written."""
        deadline = time.monotonic() + _FLUSH
        while True:
            code = self._exit_code()
            if code is not None or time.monotonic() >= deadline or "nonce" not in self.record.data:
                return code
            time.sleep(0.02)

    def stop(self, grace: float) -> int | None:
        self._leave()
        if self._alive():
            try:
                with Console(self.record.directory / CONSOLE, self.record.data["nonce"]) as console:
                    console.send(vm_console.STOP)
                    return self.wait(grace)
            except (EngineError, TimeoutError):
                # It does not listen, or does not end: switched off, which nothing in the guest can refuse.
                self._hypervisor.destroy(self.record.id)
                code = self._final_code()
                return KILLED if code is None else code
        return self._final_code()

    def _leave(self) -> None:
        """Close what this handle holds open."""
        if self._console is not None:
            self._console.close()
            self._console = None
        if self._guest is not None:
            self._guest.close()
            self._guest = None

    def destroy(self) -> None:
        self._leave()
        # Without a domain's name in the record libvirt was never asked for one (or the record was not saved: then
        # the sweep finds the domain), and a host without libvirt can still clear the rest away.
        if "domain" in self.record.data or vm_domain.qemu_pid(self.record.id) is not None:
            self._hypervisor.destroy(self.record.id)
        directory = self.record.directory
        files = [directory / name for name in (CLIENT_KEY, INITRD, CONSOLE)]
        for log in (directory / CONSOLE_LOG, self.record.log_path):
            files += vm_console.rotated(log)
        files += vm_domain.log_files(self.record.id)
        try:
            for path in files:
                path.unlink(missing_ok=True)
        except OSError as error:
            raise EngineError(f"{error.filename} could not be removed: {error.strerror}") from error


def write_private(path: Path, content: bytes, owner: tuple[int, int] | None = None) -> None:
    """Write a new file that its owner alone can read, before anything is in it.

    Raises:
        OSError
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        if owner is not None:
            os.fchown(descriptor, *owner)
        file.write(content)
