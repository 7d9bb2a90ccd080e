"""Client of libvirt: create, query and destroy a sandbox's domain, and find the files that libvirt keeps of it.

Only this module imports libvirt's Python binding, and only when it first connects.
"""

from __future__ import annotations

import atexit
import contextlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from xml.etree import ElementTree as ET

from sandbox.errors import EngineError, UnavailableError
from sandbox.isolation.vm.xml import DISK, NAME_PREFIX, domain_name
from sandbox.state.record import ID_PATTERN

T = TypeVar("T")

URI = "qemu:///system"
LOG_DIR = Path("/var/log/libvirt/qemu")
PID_DIR = Path("/run/libvirt/qemu")
"""The directory in which libvirt stores a domain's pid, and its state in case libvirtd is restarted."""
_GONE = (42, 55)
"""VIR_ERR_NO_DOMAIN, VIR_ERR_OPERATION_INVALID (libvirt/virterror.h): the domain is gone."""
_RUNNING = (1, 2)
"""VIR_DOMAIN_RUNNING, VIR_DOMAIN_BLOCKED (libvirt/libvirt-domain.h)."""
_STATUS_HEAD = 512
"""Bytes to read from a domain's status file; its first element contains the state."""


@dataclass(frozen=True, slots=True)
class Live:
    """State, limits and usage of a domain, as libvirt reports them.

    Attributes:
        running: executing, neither paused nor ended.
        vcpus: the number of virtual CPUs.
        quota: CPU time per second for the whole QEMU process; None without a quota.
        memory: in bytes.
        cpu_seconds: used by QEMU since its start.
        resident: QEMU's resident set size in bytes; None if it is not reported.
    """

    running: bool
    vcpus: int
    quota: float | None
    memory: int
    cpu_seconds: float
    resident: int | None


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes transferred since the domain's start, as the guest sees them; None if libvirt does not report them.

    Attributes:
        received, sent: over its network card.
        read, written: from and to its disk.
    """

    received: int | None
    sent: int | None
    read: int | None
    written: int | None


class Hypervisor:
    """A connection to libvirt, opened by the first call."""

    def __init__(self, uri: str = URI) -> None:
        self.uri = uri
        self._connection: Any = None

    @contextmanager
    def _talking(self, what: str) -> Iterator[Any]:
        """Yield the connection; libvirt's errors become EngineError.

        Raises:
            UnavailableError: the binding is not installed.
            EngineError: libvirt refuses.
        """
        try:
            import libvirt
        except ImportError as error:
            raise UnavailableError(
                "the Python binding of libvirt is not installed", "pip install 'sandbox-manager[vm]'"
            ) from error
        try:
            yield self._connected()
        except libvirt.libvirtError as error:
            raise EngineError(f"{what}: {error.get_error_message() or error}") from error

    def _connected(self) -> Any:
        """Return a connection that works: only a call shows that libvirtd was restarted since the last one."""
        import libvirt

        if self._connection is not None:
            try:
                self._connection.getLibVersion()
                return self._connection
            except libvirt.libvirtError:
                self._connection = None
        # The default handler prints every error to stderr, even those that are handled here.
        libvirt.registerErrorHandler(lambda _context, _error: None, None)
        self._connection = libvirt.open(self.uri)
        # Closed before the interpreter's shutdown, which may unload the library before it deletes its objects.
        atexit.register(_close, self._connection)
        return self._connection

    def connect(self) -> None:
        """Open the connection.

        Raises:
            UnavailableError, EngineError
        """
        with self._talking("libvirt cannot be reached"):
            pass

    def qemu_owner(self) -> tuple[int, int]:
        """Return the user and group id that libvirt runs QEMU as, from its capabilities.

        Raises:
            EngineError: they are not reported.
        """
        with self._talking("libvirt's capabilities cannot be read") as connection:
            capabilities = ET.fromstring(connection.getCapabilities())  # noqa: S314 - libvirtd's own
        for model in capabilities.iterfind("./host/secmodel"):
            label = model.findtext("baselabel", "")
            match = re.fullmatch(r"\+(\d+):\+(\d+)", label)
            if model.findtext("model") == "dac" and match:
                return int(match[1]), int(match[2])
        raise EngineError("libvirt does not report the user that QEMU runs as", "enable its DAC security driver")

    def create_paused(self, xml: str) -> None:
        """Start QEMU with the guest's processors stopped. The domain is transient: it disappears when QEMU exits.

        Raises:
            EngineError
        """
        import libvirt

        flags = libvirt.VIR_DOMAIN_START_PAUSED | libvirt.VIR_DOMAIN_START_VALIDATE
        with self._talking("the virtual machine could not be created") as connection:
            connection.createXML(xml, flags)

    def resume(self, ident: str) -> None:
        """Start the guest's processors; does nothing if they are running.

        Raises:
            EngineError
        """
        with self._talking("the virtual machine could not be started") as connection:
            domain = connection.lookupByName(domain_name(ident))
            if domain.state()[0] not in _RUNNING:
                domain.resume()

    def suspend(self, ident: str) -> None:
        """Stop the guest's processors; does nothing if they are stopped.

        Raises:
            EngineError
        """
        with self._talking("the virtual machine could not be paused") as connection:
            connection.lookupByName(domain_name(ident)).suspend()

    def _ask(
        self, ident: str, question: Callable[[Any], T], what: str = "the virtual machine cannot be inspected"
    ) -> T | None:
        """Return the result of a query of a domain; None if the domain does not exist or ends meanwhile.

        Raises:
            EngineError
        """
        import libvirt

        with self._talking(what) as connection:
            try:
                return question(connection.lookupByName(domain_name(ident)))
            except libvirt.libvirtError as error:
                if error.get_error_code() in _GONE:
                    return None
                raise

    def exists(self, ident: str) -> bool:
        """Return whether the domain exists, running or not."""
        return self._ask(ident, lambda _: True) is True

    def live(self, ident: str) -> Live | None:
        """Return a domain's state, limits and usage; None if it does not exist.

        Raises:
            EngineError
        """

        def question(domain: Any) -> Live:
            state, memory_kib, _, vcpus, nanoseconds = domain.info()
            scheduler = domain.schedulerParameters() if self._has_cpu_cgroup(domain) else {}
            quota, period = scheduler.get("global_quota", 0), scheduler.get("global_period", 0)
            resident = domain.memoryStats().get("rss")
            return Live(
                running=state in _RUNNING,
                vcpus=vcpus,
                quota=quota / period if quota > 0 and period > 0 else None,
                memory=memory_kib * 1024,
                cpu_seconds=nanoseconds / 1e9,
                resident=None if resident is None else resident * 1024,
            )

        return self._ask(ident, question)

    def traffic(self, ident: str, interface: str) -> Traffic | None:
        """Return the traffic of a domain's network card and disk; None if the domain does not exist.

        Raises:
            EngineError
        """

        def question(domain: Any) -> Traffic:
            # libvirt swaps a tap's counters, so that they are from the guest's point of view.
            received, _, _, _, sent, *_ = domain.interfaceStats(interface)
            _, read, _, written, _ = domain.blockStats(DISK)
            return Traffic(*(value if value >= 0 else None for value in (received, sent, read, written)))

        return self._ask(ident, question)

    def description(self, ident: str) -> str | None:
        """Return the live domain's XML, including libvirt's additions; None if it does not exist.

        Raises:
            EngineError
        """
        return self._ask(ident, lambda domain: str(domain.XMLDesc(0)))

    @staticmethod
    def _has_cpu_cgroup(domain: Any) -> bool:
        """Return whether libvirt has a control group for the domain's CPU time."""
        import libvirt

        try:
            domain.schedulerType()
        except libvirt.libvirtError:
            return False
        return True

    def destroy(self, ident: str) -> None:
        """Kill QEMU and remove the domain. A transient domain disappears when its QEMU has exited.

        Raises:
            EngineError
        """

        def end(domain: Any) -> None:
            persistent = bool(domain.isPersistent())
            if domain.isActive():
                domain.destroy()
            if persistent:
                domain.undefine()

        self._ask(ident, end, "the virtual machine could not be removed")

    def idents(self) -> list[str]:
        """Return the ids of all our domains, which are recognised by their names.

        Raises:
            EngineError
        """
        with self._talking("the virtual machines cannot be listed") as connection:
            names = [domain.name() for domain in connection.listAllDomains()]
        return sorted(ident for name in names if (ident := ident_of(name)) is not None)


def _close(connection: Any) -> None:
    import libvirt

    with contextlib.suppress(libvirt.libvirtError):  # it may be dead
        connection.close()


def ident_of(name: str) -> str | None:
    """Return the sandbox id in a domain's name; None if the domain is not ours."""
    ident = name.removeprefix(NAME_PREFIX)
    return ident if ident != name and ID_PATTERN.fullmatch(ident) else None


def qemu_pid(ident: str) -> int | None:
    """Return QEMU's pid on this host. libvirt has no call for it, but writes it to a file."""
    try:
        return int((PID_DIR / f"{domain_name(ident)}.pid").read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def is_paused(ident: str) -> bool:
    """Return whether the guest is paused, from the status file that libvirt writes at each change.

    libvirtd is not asked, because this is called in loops, and must also work while libvirtd is restarted.
    """
    try:
        with (PID_DIR / f"{domain_name(ident)}.xml").open("rb") as file:
            head = file.read(_STATUS_HEAD)
    except OSError:
        return False
    return re.search(rb"<domstatus state=['\"]paused['\"]", head) is not None


def log_files(ident: str | None = None) -> list[Path]:
    """Return libvirt's log files of a domain, including rotated ones; of all our domains if no id is given."""
    found = []
    with contextlib.suppress(OSError):
        for path in LOG_DIR.glob(f"{NAME_PREFIX}*.log*"):
            owner = ident_of(path.name.partition(".log")[0])
            if owner is not None and ident in (None, owner):
                found.append(path)
    return sorted(found)
