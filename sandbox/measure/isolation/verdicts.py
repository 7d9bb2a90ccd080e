"""Derive the verdicts, with their evidence, from the observations. Pure functions.

A claim of the sandbox counts only if the host can check it: that it saw something of the host, by a secret that it
cannot know otherwise; that it did not, by the host's own view of its isolation.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from sandbox.measure.isolation.observed import DIED, Push, Resident, Subject, clean
from sandbox.results import Verdict

ISOLATED, SHARED, PARTIAL, UNKNOWN = Verdict.ISOLATED, Verdict.SHARED, Verdict.PARTIAL, Verdict.UNKNOWN

HARMLESS_NODES = re.compile(
    r"(null|zero|full|random|urandom|tty|ptmx|console|pts/\d+|pts/ptmx|fuse|net/tun)"  # as devices(7) of containers
)
_CAPABILITY_SETS = ("CapInh", "CapPrm", "CapEff", "CapAmb")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Finding:
    """A verdict with its evidence: what was seen inside, what the host saw, and how the host checked."""

    verdict: Verdict
    inside: str
    host: str
    witness: str

    @property
    def evidence(self) -> dict[str, str]:
        """Return the evidence by name, without empty texts."""
        return {name: text for name, text in (("inside", self.inside), ("host", self.host)) if text}


def own_kernel(subject: Subject) -> bool | None:
    """Return whether the sandbox has a kernel of its own; None if the evidence is contradictory or missing.

    A process that runs inside is in the host's /proc if and only if the host's kernel runs it. The boot id must not
    contradict this; a kernel may show none (gVisor's does not).
    """
    if not subject.sleeper.ran:
        return None
    same_boot = subject.user.boot_id == subject.host.boot_id
    if subject.sleeper.found is not None:
        return False if same_boot or subject.user.boot_id is None else None
    # Neither it nor a carrier is in this /proc: it may run on another host.
    return None if same_boot or subject.carrier is None else True


def kernel(subject: Subject) -> Finding:
    """Does the host's kernel run the processes inside?"""
    own = own_kernel(subject)
    found = subject.sleeper.found
    boot = subject.user.boot_id
    inside = f"Linux {clean(subject.user.release, 40)}, boot id {clean(boot[:8]) if boot else 'not shown'}"
    host = f"Linux {subject.host.release}, boot id {subject.host.boot_id[:8]}; "
    host += f"runs it as pid {found.pid}" if found else "runs no such process"
    verdict = {True: ISOLATED, False: SHARED, None: UNKNOWN}[own]
    return Finding(verdict, inside, host, "looked in its /proc for a process started inside, by a random word")


def processes(subject: Subject) -> Finding:
    """Can a process inside see a process of the host, or signal it?"""
    seen = any(look.marker == subject.secrets.marker for look in subject.looks)
    hit = subject.secrets.signals > 0
    inside = f"sees {subject.user.processes} processes" + (", the host's marker among them" if seen else "")
    own, apart = own_kernel(subject), _apart(subject, "pid")
    host = f"marker process got {subject.secrets.signals} signals; "
    host += "another kernel" if own else f"pid namespace {_same_or_own(apart)}"
    walled = ISOLATED if own or apart else UNKNOWN
    verdict = {0: walled, 1: PARTIAL, 2: SHARED}[seen + hit]
    return Finding(verdict, inside, host, "a process with a random word in its arguments, which counts signals")


def files(subject: Subject) -> Finding:
    """Can a process inside read a file of the host?"""
    ways = sorted({way for look in subject.looks for way, text in look.files.items() if text == subject.secrets.token})
    own, apart = own_kernel(subject), _apart(subject, "mnt")
    inside = f"read it by {', '.join(ways)}" if ways else f"{len(subject.looks[-1].files)} ways tried, none succeeded"
    host = "another kernel" if own else f"mount namespace {_same_or_own(apart)}"
    if ways:
        verdict = SHARED
    elif own or apart:
        verdict = ISOLATED
    else:
        # A changed root directory in the host's own mount namespace only hides the host's files.
        verdict = UNKNOWN if apart is None else PARTIAL
    return Finding(verdict, inside, host, "a file with random text at a random path, readable by all")


def host_services(subject: Subject) -> Finding:
    """Can a process inside connect to a server on the host?"""
    working, heard = subject.secrets.listeners, subject.secrets.heard
    shown = ", ".join(f"{name}: {clean(text, 14)}" for name, text in sorted(_listeners(subject).items()))
    host = f"{len(heard)} of {len(working)} listeners heard it" + (f": {', '.join(sorted(heard))}" if heard else "")
    if not working:
        return Finding(UNKNOWN, shown, "no listener heard the host itself", "accept logs with random words")
    tried = _listeners(subject)
    if heard:
        verdict = SHARED if heard >= working else PARTIAL
    elif working <= tried.keys() and "connected" not in tried.values():
        verdict = ISOLATED
    else:
        verdict = UNKNOWN  # without an attempt from inside, this proves nothing
    return Finding(verdict, shown, host, "accept logs with random words; each listener heard the host before")


def sibling(subject: Subject) -> Finding:
    """Can a process inside connect to another sandbox of its level?"""
    tried = subject.user.reached.get("sibling")
    inside = f"connection: {clean(tried, 20)}" if tried else "not tried"
    witness = "a listener in a sibling reports the random words that reached it; it heard the host"
    if subject.sibling_heard:
        return Finding(SHARED, inside, "the sibling heard it", witness)
    if not subject.sibling_up or tried is None:
        return Finding(UNKNOWN, inside, "the sibling's listener did not hear the host", witness)
    verdict = UNKNOWN if tried == "connected" else ISOLATED
    return Finding(verdict, inside, "the sibling heard the host, not it", witness)


def route_out(subject: Subject) -> Finding:
    """Is there a route to other networks? Only the routing tables are consulted, and nothing is contacted."""
    inside = ", ".join(f"{name}: {clean(text, 40)}" for name, text in sorted(subject.user.routes.items()))
    witness = "the routing table of the sandbox's network namespace, and the bridge's forwarding rules"
    leads = any(text.startswith("from ") for text in subject.user.routes.values())
    apart = _apart(subject, "net")
    if apart:
        host = "own network namespace, " + ("with" if subject.default_route else "without") + " a default route"
        barred = subject.default_route is False
    else:
        host = f"network namespace {_same_or_own(apart)}; "
        host += "forwarding from the bridge is dropped" if subject.forwarding_barred else "forwarding is not barred"
        barred = bool(own_kernel(subject)) and subject.forwarding_barred
    if leads:
        # A route in the sandbox's own namespace leads nowhere if the host does not forward; one of the host's does.
        return Finding(PARTIAL if apart and subject.forwarding_barred else SHARED, inside, host, witness)
    if not subject.user.routes:
        return Finding(UNKNOWN, "not tried", host, witness)
    return Finding(ISOLATED if barred else UNKNOWN, inside, host, witness)


def root_user(subject: Subject) -> Finding:
    """As which user of the host does root of the sandbox run?"""
    inside = f"uid {subject.sleeper.uid}" if subject.sleeper.ran else "no root process could be started"
    witness = "the host's /proc/<pid>/status of a process that root started inside, found by a random word"
    found = subject.sleeper.found
    if not subject.sleeper.ran or subject.sleeper.uid != 0:
        return Finding(UNKNOWN, inside, "", witness)
    if found is not None:
        verdict = SHARED if 0 in found.uids else ISOLATED
        return Finding(verdict, inside, f"uid {found.uids[1]} on the host (pid {found.pid})", witness)
    if subject.carrier is None or not own_kernel(subject):
        return Finding(UNKNOWN, inside, "no such process on the host", witness)
    # It is not a process of the host. An attacker who breaks out of the carrier has the carrier's user.
    host = f"no such process; its carrier {subject.carrier.name} is uid {subject.carrier.uids[1]}"
    return Finding(PARTIAL if 0 in subject.carrier.uids else ISOLATED, inside, host, witness)


def namespaces(subject: Subject) -> Finding:
    """Which namespaces does the sandbox share with the host?"""
    witness = "the links of /proc/<pid>/ns of the sandbox's first process beside the host's own"
    carrier = subject.carrier
    if carrier is None or not carrier.namespaces:
        return Finding(UNKNOWN, "", "its first process is not visible on the host", witness)
    own = sorted(name for name, link in carrier.namespaces.items() if link != subject.host.namespaces.get(name))
    shared = sorted(carrier.namespaces.keys() - set(own))
    host = f"{carrier.name}: own {' '.join(own) or 'none'}; the host's {' '.join(shared) or 'none'}"
    if own_kernel(subject):
        return Finding(ISOLATED, "those of another kernel", host, witness)
    outside = {subject.host.namespaces.get(name) for name in shared}
    agreed = sum(link in outside for link in subject.user.namespaces.values())
    inside = f"{agreed} links are the host's"
    return Finding(SHARED if not own else PARTIAL if shared else ISOLATED, inside, host, witness)


def capabilities(subject: Subject) -> Finding:
    """Which capabilities does root of the sandbox have in the host's kernel?"""
    witness = "CapEff, CapPrm, CapInh, CapAmb and CapBnd in the host's /proc/<pid>/status"
    judged = _on_the_host(subject)
    inside = f"root says CapEff {subject.root.status.get('CapEff', 0):x}" if subject.root else ""
    if not judged:
        return Finding(UNKNOWN, inside, "none of its processes is visible on the host", witness)
    held, bound, locked = 0, 0, True
    for one in judged:
        for name in _CAPABILITY_SETS:
            held |= one.status.get(name, 0)
        bound |= one.status.get("CapBnd", 0)
        locked = locked and one.status.get("NoNewPrivs") == 1 and 0 not in one.uids
    userns = all(one.namespaces.get("user", "") != subject.host.namespaces.get("user") for one in judged)
    host = f"holds {held:x}, bounded by {bound:x}" + (", valid in its own user namespace only" if userns else "")
    if not held and (not bound or locked):
        return Finding(ISOLATED, inside, host, witness)
    everything = subject.host.capabilities
    if held & everything == everything and not userns:
        return Finding(SHARED, inside, host, witness)
    return Finding(PARTIAL, inside, host, witness)


def seccomp(subject: Subject) -> Finding:
    """Does a filter restrict the system calls to the host's kernel?"""
    witness = "the field Seccomp in the host's /proc/<pid>/status (2: a filter is in force), and calls tried inside"
    passed = sorted(name for name, text in subject.user.calls.items() if text not in ("EPERM", "EACCES", "ENOSYS"))
    tried = len(subject.user.calls)
    inside = f"{tried - len(passed)} of {tried} calls refused" + (
        f"; passed: {clean(', '.join(passed))}" if passed else ""
    )
    judged = _on_the_host(subject)
    if not judged:
        return Finding(UNKNOWN, inside, "none of its processes is visible on the host", witness)
    bare = [one for one in judged if one.status.get("Seccomp") != 2]
    host = f"{len(judged) - len(bare)} of {len(judged)} processes filtered"
    if own_kernel(subject):
        # Its calls go to its own kernel; the filter of the carrier is additional isolation.
        return Finding(PARTIAL if bare else ISOLATED, inside, host + " (the carrier)", witness)
    if len(bare) == len(judged):
        return Finding(SHARED, inside, host, witness)
    return Finding(PARTIAL if bare or passed or not tried else ISOLATED, inside, host, witness)


def no_new_privileges(subject: Subject) -> Finding:
    """Can a set-user-id program raise privileges?"""
    witness = "the field NoNewPrivs in the host's /proc/<pid>/status"
    inside = f"says {subject.user.status['NoNewPrivs']}" if "NoNewPrivs" in subject.user.status else ""
    judged = _on_the_host(subject)
    if not judged:
        return Finding(UNKNOWN, inside, "none of its processes is visible on the host", witness)
    bare = [one for one in judged if one.status.get("NoNewPrivs") != 1]
    host = f"set for {len(judged) - len(bare)} of {len(judged)} processes"
    if not bare:
        return Finding(ISOLATED, inside, host, witness)
    shared = len(bare) == len(judged) and not own_kernel(subject)
    return Finding(SHARED if shared else PARTIAL, inside, host, witness)


def devices(subject: Subject) -> Finding:
    """Which devices exist, which can be opened, and can a disk of the host be read?"""
    witness = f"a block device of the host ({subject.host.disk or 'none'}) with random content"
    nodes = {node.name: node for look in subject.looks for node in look.nodes}
    opened = {node.name for look in subject.looks for node in look.nodes if node.opened}
    odd = sorted(name for name in opened if not HARMLESS_NODES.fullmatch(name))
    inside = f"{len(nodes)} nodes, {len(opened)} open" + (f", unusual ones: {clean(', '.join(odd), 60)}" if odd else "")
    ways = sorted({way for look in subject.looks for way, text in look.disk.items() if text == subject.secrets.disk})
    if ways:
        host = f"the host's device was read by {clean(', '.join(ways), 80)}"
        return Finding(SHARED, inside, host, witness)
    other = any(_HASH.fullmatch(text) for look in subject.looks for text in look.disk.values())
    host = "the content read is not the host's" if other else "the host's device was not read"
    if not subject.secrets.disk or not any(look.disk for look in subject.looks):
        return Finding(UNKNOWN, inside, "the host could not create a device to try", witness)
    if own_kernel(subject):
        return Finding(ISOLATED, inside, host + "; devices are those of another kernel", witness)
    return Finding(PARTIAL if odd or other else ISOLATED, inside, host, witness)


def cpus_seen(subject: Subject) -> Finding:
    """Does a process inside see the CPUs that the sandbox was granted, or the host's?"""
    seen, online = subject.user.affinity, subject.user.online
    granted = max(1, -int(-subject.cpus // 1))
    inside = f"may use {seen}, sees {online}"
    host = f"granted {subject.cpus:g} of {subject.host.cpus}"
    witness = "compared with the limit read back and the host's own count"
    if granted >= subject.host.cpus:
        return Finding(UNKNOWN, inside, host + ": nothing was withheld", witness)
    over = (seen > granted, online > granted)
    return Finding(SHARED if all(over) else PARTIAL if any(over) else ISOLATED, inside, host, witness)


def memory_seen(subject: Subject) -> Finding:
    """Does a process inside see the memory that the sandbox was granted, or the host's?"""
    seen, granted, total = subject.user.memory, subject.memory, subject.host.memory
    host = f"granted {mib(granted)} of {mib(total)}"
    witness = "compared MemTotal inside with the limit read back and the host's own"
    if seen is None:
        return Finding(UNKNOWN, "not shown", host, witness)
    inside = f"sees {mib(seen)}"
    if granted >= total:
        return Finding(UNKNOWN, inside, host + ": nothing was withheld", witness)
    if seen <= granted * 1.05:
        return Finding(ISOLATED, inside, host, witness)
    return Finding(SHARED if abs(seen - total) <= total * 0.01 else PARTIAL, inside, host, witness)


def memory_limit(push: Push) -> Finding:
    """Did the memory limit hold?"""
    witness = f"{push.counter}, and the host's free memory meanwhile"
    got = mib(push.got) if push.got is not None else "?"
    inside = f"took {got} of {mib(push.asked)} tried, {clean(push.ended, 30)}"
    sunk = f"; free memory sank by {mib(push.sunk)}" if push.sunk is not None else ""
    return _limit(push, inside, mib(push.limit), (mib(push.peak) if push.peak is not None else None), witness, sunk)


def pids_limit(push: Push) -> Finding:
    """Did the limit of processes hold?"""
    got = push.got if push.got is not None else "?"
    inside = f"made {got} of {push.asked} tried, {clean(push.ended, 30)}"
    peak = str(push.peak) if push.peak is not None else None
    return _limit(push, inside, str(push.limit), peak, push.counter, "")


def _limit(push: Push, inside: str, limit: str, peak: str | None, witness: str, extra: str) -> Finding:
    if push.limit is None:
        return Finding(UNKNOWN, "not tried", "the limit could not be read back", witness)
    host = f"limit {limit}"
    host += f", refusals: {push.refusals}" if push.refusals is not None else ", no counter to read"
    host += f", peak {peak}" if peak is not None else ""
    host += extra
    exceeded = push.peak is not None and push.peak > push.limit * 1.02
    if exceeded or (push.got is not None and push.got >= push.asked):
        return Finding(Verdict.NOT_HELD, inside, host, witness)
    if push.sunk is not None and push.sunk > 2 * push.limit and push.peak is None:
        return Finding(UNKNOWN, inside, host + ", more than the limit explains", witness)
    # Without a counter of refusals: the stressor was refused, and an independent count stayed within the limit.
    met = push.refusals is None and push.peak is not None and push.ended.startswith("refused")
    # The counter disappears with the cgroup of a sandbox that ended, before its last value is read. The peak was read,
    # and a peak at the limit means that the next charge was refused.
    at_limit = push.peak is not None and push.limit * 0.98 <= push.peak and push.ended == DIED
    if push.refusals or met or at_limit:
        return Finding(Verdict.HELD, inside, host, witness)
    return Finding(UNKNOWN, inside, host, witness)


CHECKS: dict[str, Callable[[Subject], Finding]] = {
    "kernel": kernel,
    "processes": processes,
    "files": files,
    "host services": host_services,
    "sibling": sibling,
    "route out": route_out,
    "root user": root_user,
    "namespaces": namespaces,
    "capabilities": capabilities,
    "seccomp": seccomp,
    "no new privileges": no_new_privileges,
    "devices": devices,
    "CPUs seen": cpus_seen,
    "memory seen": memory_seen,
}
LIMITS: dict[str, Callable[[Push], Finding]] = {"memory limit": memory_limit, "pids limit": pids_limit}
NAMES = (*CHECKS, *LIMITS)
"""Every check, in the order of the table."""


def mib(size: int | None) -> str:
    """Format a size."""
    return "?" if size is None else f"{size / 1048576:.0f} MiB" if size < 10 << 30 else f"{size / 1073741824:.1f} GiB"


def _apart(subject: Subject, name: str) -> bool | None:
    """Return whether the carrier has its own namespace of this kind; None if it is not visible."""
    if subject.carrier is None or name not in subject.carrier.namespaces:
        return None
    return subject.carrier.namespaces[name] != subject.host.namespaces.get(name)


def _same_or_own(apart: bool | None) -> str:
    return {True: "of its own", False: "the host's", None: "not visible"}[apart]


def _listeners(subject: Subject) -> dict[str, str]:
    return {name: text for name, text in subject.user.reached.items() if name != "sibling"}


def _on_the_host(subject: Subject) -> list[Resident]:
    """Return the processes of the sandbox on the host, including root's if there is one."""
    found = {one.pid: one for one in subject.residents}
    if subject.sleeper.found is not None:
        found[subject.sleeper.found.pid] = subject.sleeper.found
    return list(found.values())
