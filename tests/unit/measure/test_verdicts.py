"""Every check has both results, and UNKNOWN if the evidence is missing or contradictory."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from sandbox.measure.isolation import verdicts
from sandbox.measure.isolation.observed import Host, Look, Node, Resident, Secrets, Sleeper, Subject
from sandbox.results import Verdict

W, S, P, U = Verdict.ISOLATED, Verdict.SHARED, Verdict.PARTIAL, Verdict.UNKNOWN
MIB = 1 << 20
HOST_NS = {name: f"{name}:[1]" for name in ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")}
OWN_NS = {name: f"{name}:[2]" for name in HOST_NS}
HARDENED = {"CapInh": 0, "CapPrm": 0, "CapEff": 0, "CapBnd": 0, "CapAmb": 0, "NoNewPrivs": 1, "Seccomp": 2}
ALL = 0x1FFFFFFFFFF
BARE = {"CapInh": 0, "CapPrm": ALL, "CapEff": ALL, "CapBnd": ALL, "CapAmb": 0, "NoNewPrivs": 0, "Seccomp": 0}
REFUSED = dict.fromkeys(("unshare", "keyctl"), "EPERM")
LISTENERS = frozenset({"bridge address", "loopback"})

INIT = Resident(100, "tini", (100000,) * 4, HARDENED, OWN_NS)
ROOT_OUTSIDE = Resident(200, "python3", (100000,) * 4, HARDENED, OWN_NS)
LOOK = Look(
    uid=10001,
    boot_id="boot-host",
    release="6.1.0",
    status=HARDENED,
    namespaces=OWN_NS,
    affinity=1,
    online=1,
    memory=256 * MIB,
    processes=3,
    marker=None,
    signalled="ESRCH",
    files={"path": "ENOENT", "/proc/1/root": "EACCES"},
    nodes=[Node("null", "c", "1:3", True)],
    disk={"/dev/loop0": "ENOENT", "mknod in /tmp": "EPERM"},
    reached={"bridge address": "timeout", "loopback": "ECONNREFUSED", "sibling": "timeout"},
    routes={"IPv4": "ENETUNREACH", "IPv6": "ENETUNREACH"},
    calls=REFUSED,
)
HOST = Host("boot-host", "6.1.0", 4, 8192 * MIB, HOST_NS, ALL, "/dev/loop0")
SECRETS = Secrets("marker", "token", "d" * 64, 0, LISTENERS, frozenset())
WALLED = Subject(
    user=LOOK,
    root=replace(LOOK, uid=0),
    sleeper=Sleeper(True, 0, ROOT_OUTSIDE),
    carrier=INIT,
    residents=(INIT,),
    default_route=False,
    forwarding_barred=True,
    sibling_up=True,
    sibling_heard=False,
    cpus=1.0,
    memory=256 * MIB,
    secrets=SECRETS,
    host=HOST,
)
"""A sandbox on the host's kernel, with all isolation."""

QEMU = Resident(100, "qemu", (64055,) * 4, HARDENED | {"CapBnd": ALL}, HOST_NS)
MACHINE = replace(
    WALLED,
    user=replace(LOOK, boot_id="boot-guest"),
    root=replace(LOOK, boot_id="boot-guest", uid=0),
    sleeper=Sleeper(True, 0, None),
    carrier=QEMU,
    residents=(QEMU,),
)
"""A sandbox with a kernel of its own."""

OPEN_INIT = Resident(100, "tini", (10001,) * 4, BARE, HOST_NS)
OPEN_ROOT = Resident(200, "python3", (0,) * 4, BARE, HOST_NS)
OPEN = replace(
    WALLED,
    user=replace(LOOK, namespaces=HOST_NS),
    root=replace(LOOK, namespaces=HOST_NS, uid=0),
    sleeper=Sleeper(True, 0, OPEN_ROOT),
    carrier=OPEN_INIT,
    residents=(OPEN_INIT,),
    default_route=True,
)
"""A plain process that has found nothing."""


def seen(subject: Subject, **changes: Any) -> Subject:
    """Return the subject with different observations inside, for both users."""
    root = replace(subject.root, **changes) if subject.root else None
    return replace(subject, user=replace(subject.user, **changes), root=root)


def hidden(subject: Subject, **changes: Any) -> Subject:
    """Return the subject with different observations of the witness."""
    return replace(subject, secrets=replace(subject.secrets, **changes))


def carried(subject: Subject, **changes: Any) -> Subject:
    """Return the subject with a different carrier and process of root."""
    carrier = replace(subject.carrier or INIT, **changes)
    found = replace(subject.sleeper.found, **changes) if subject.sleeper.found else None
    return replace(subject, carrier=carrier, residents=(carrier,), sleeper=replace(subject.sleeper, found=found))


NO_RUN = replace(WALLED, sleeper=Sleeper(False, None, None))
UNSEEN = replace(WALLED, carrier=None, residents=(), sleeper=Sleeper(True, 0, None))

TABLE: dict[str, list[tuple[str, Subject, Verdict]]] = {
    "kernel": [
        ("the host runs it", WALLED, S),
        ("the host does not know it", MACHINE, W),
        ("no boot id inside, not on the host: gVisor", seen(MACHINE, boot_id=None), W),
        ("no boot id inside, but on the host", seen(WALLED, boot_id=None), S),
        ("claims another boot id, yet the host runs it", seen(WALLED, boot_id="forged"), U),
        ("claims the host's boot id, yet is not on the host", seen(MACHINE, boot_id="boot-host"), U),
        ("nothing ran inside", NO_RUN, U),
        ("nothing of it is on this host", replace(MACHINE, carrier=None), U),
    ],
    "processes": [
        ("own pid namespace", WALLED, W),
        ("own kernel", MACHINE, W),
        ("named the marker and reached it", hidden(seen(OPEN, marker="marker"), signals=1), S),
        ("named the marker", seen(WALLED, marker="marker"), P),
        ("reached the marker", hidden(WALLED, signals=2), P),
        ("named something else", seen(WALLED, marker="made up"), W),
        ("saw nothing, but no wall is there", OPEN, U),
        ("saw nothing, and the host sees no wall", replace(UNSEEN, sleeper=WALLED.sleeper), U),
    ],
    "files": [
        ("own mount namespace", WALLED, W),
        ("own kernel", MACHINE, W),
        ("read it", seen(WALLED, files={"path": "token"}), S),
        ("read it past the chroot", seen(OPEN, files={"out of the chroot": "token"}), S),
        ("read something else", seen(WALLED, files={"path": "tokem"}), W),
        ("chroot alone", OPEN, P),
        ("the host sees no wall", replace(UNSEEN, sleeper=WALLED.sleeper), U),
    ],
    "host services": [
        ("none heard it", WALLED, W),
        ("all heard it", hidden(WALLED, heard=LISTENERS), S),
        ("one heard it", hidden(WALLED, heard=frozenset({"loopback"})), P),
        ("claims to have connected, none heard it", seen(WALLED, reached=LOOK.reached | {"loopback": "connected"}), U),
        ("tried one of them only", seen(WALLED, reached={"loopback": "timeout"}), U),
        ("did not try", seen(WALLED, reached={}), U),
        ("the listeners were deaf", hidden(WALLED, listeners=frozenset()), U),
    ],
    "sibling": [
        ("not heard", WALLED, W),
        ("heard", replace(WALLED, sibling_heard=True), S),
        ("claims to have connected, not heard", seen(WALLED, reached={"sibling": "connected"}), U),
        ("the sibling was deaf", replace(WALLED, sibling_up=False), U),
        ("did not try", seen(WALLED, reached={}), U),
    ],
    "route out": [
        ("none, own network namespace", WALLED, W),
        ("none, own kernel, bridge barred", MACHINE, W),
        ("none, own kernel, bridge not barred", replace(MACHINE, forwarding_barred=False), U),
        ("the host's", seen(OPEN, routes={"IPv4": "from 192.0.2.2"}), S),
        ("its own, but nothing is forwarded", seen(WALLED, routes={"IPv4": "from 198.18.2.1"}), P),
        (
            "its own, and forwarded",
            replace(seen(WALLED, routes={"IPv4": "from 198.18.2.1"}), forwarding_barred=False),
            S,
        ),
        ("says none, the host sees one", replace(WALLED, default_route=True), U),
        ("says none, in the host's namespace", OPEN, U),
        ("did not try", seen(WALLED, routes={}), U),
    ],
    "root user": [
        ("nobody outside", WALLED, W),
        ("root outside", OPEN, S),
        ("one of its ids is root's", carried(WALLED, uids=(100000, 100000, 0, 100000)), S),
        ("own kernel, carried by nobody", MACHINE, W),
        ("own kernel, carried by root", carried(MACHINE, uids=(0,) * 4), P),
        ("not root inside either", replace(WALLED, sleeper=Sleeper(True, 10001, ROOT_OUTSIDE)), U),
        ("no root process", NO_RUN, U),
        ("own kernel, the carrier is elsewhere", replace(MACHINE, carrier=None), U),
    ],
    "namespaces": [
        ("all its own", WALLED, W),
        ("all the host's", OPEN, S),
        ("all but one", carried(WALLED, namespaces=OWN_NS | {"time": HOST_NS["time"]}), P),
        ("own kernel", MACHINE, W),
        ("the host sees none", UNSEEN, U),
    ],
    "capabilities": [
        ("none", WALLED, W),
        ("all of them", OPEN, S),
        ("all, in its own user namespace", carried(OPEN, namespaces=OWN_NS), P),
        ("some", carried(WALLED, status=HARDENED | {"CapEff": 1}, namespaces=HOST_NS), P),
        (
            "none held, but bounded by all, as root",
            carried(WALLED, status=HARDENED | {"CapBnd": ALL}, uids=(0,) * 4),
            P,
        ),
        ("none held, and no way to the bound", MACHINE, W),
        ("none held, and a way to the bound", carried(MACHINE, status=BARE | {"CapEff": 0, "CapPrm": 0}), P),
        ("the host sees none", UNSEEN, U),
    ],
    "seccomp": [
        ("filtered", WALLED, W),
        ("bare", OPEN, S),
        ("filtered, but a call passes", seen(WALLED, calls=REFUSED | {"keyctl": "ok"}), P),
        ("filtered, but a call passes with a complaint", seen(WALLED, calls=REFUSED | {"keyctl": "EFAULT"}), P),
        ("filtered, nothing tried", seen(WALLED, calls={}), P),
        ("one process bare", replace(WALLED, residents=(INIT, replace(INIT, pid=101, status=BARE))), P),
        ("own kernel, carrier filtered", seen(MACHINE, calls={"keyctl": "ok"}), W),
        ("own kernel, carrier bare", carried(MACHINE, status=BARE), P),
        ("the host sees none", UNSEEN, U),
    ],
    "no new privileges": [
        ("set", WALLED, W),
        ("not set", OPEN, S),
        ("set for some", replace(WALLED, residents=(INIT, replace(INIT, pid=101, status=BARE))), P),
        ("says set, the host says not", carried(WALLED, status=BARE), S),
        ("own kernel, carrier without", carried(MACHINE, status=BARE), P),
        ("the host sees none", UNSEEN, U),
    ],
    "devices": [
        ("not to be read", WALLED, W),
        ("own kernel", seen(MACHINE, nodes=[Node("vda", "b", "254:0", True)], disk={"/dev/loop0": "e" * 64}), W),
        ("read", seen(WALLED, disk={"mknod in /tmp": "d" * 64}), S),
        ("read from another kernel", seen(MACHINE, disk={"/dev/loop0": "d" * 64}), S),
        ("another device read", seen(WALLED, disk={"/dev/loop0": "e" * 64}), P),
        ("an unusual node opens", seen(WALLED, nodes=[Node("kmsg", "c", "1:11", True)]), P),
        ("an unusual node is closed", seen(WALLED, nodes=[Node("kmsg", "c", "1:11", False)]), W),
        ("no device to try", hidden(seen(WALLED, disk={}), disk=None), U),
        ("not tried", seen(WALLED, disk={}), U),
    ],
    "CPUs seen": [
        ("as granted", WALLED, W),
        ("the host's", seen(WALLED, affinity=4, online=4), S),
        ("may use what was granted, sees all", seen(WALLED, affinity=1, online=4), P),
        ("a fraction is one", replace(WALLED, cpus=0.5), W),
        ("one and a half are two", replace(seen(WALLED, affinity=2, online=2), cpus=1.5), W),
        ("all were granted", replace(seen(WALLED, affinity=4, online=4), cpus=4.0), U),
    ],
    "memory seen": [
        ("as granted", WALLED, W),
        ("less, for a guest's kernel takes some", seen(MACHINE, memory=230 * MIB), W),
        ("the host's", seen(WALLED, memory=8192 * MIB), S),
        ("something else", seen(WALLED, memory=1024 * MIB), P),
        ("not shown", seen(WALLED, memory=None), U),
        ("all was granted", replace(WALLED, memory=8192 * MIB), U),
    ],
}


@pytest.mark.parametrize(
    ("check", "subject", "expected"),
    [pytest.param(check, row[1], row[2], id=f"{check}: {row[0]}") for check, rows in TABLE.items() for row in rows],
)
def test_verdict(check: str, subject: Subject, expected: Verdict) -> None:
    finding = verdicts.CHECKS[check](subject)
    assert finding.verdict is expected
    assert finding.witness


def test_every_check_has_rows_for_held_broken_and_unknown() -> None:
    assert TABLE.keys() == verdicts.CHECKS.keys()
    for check, rows in TABLE.items():
        assert {W, S, U} <= {row[2] for row in rows}, check


@pytest.mark.parametrize("subject", [WALLED, MACHINE, OPEN, NO_RUN, UNSEEN, replace(WALLED, root=None)])
def test_evidence_is_short_text_without_control_characters(subject: Subject) -> None:
    hostile = seen(
        subject,
        release="\x1b[2J" + "x" * 5000,
        reached={"loopback": "\x07\x1b]0;title\x07" * 99},
        routes={"IPv4": "\r\n" * 99},
        calls={"\x1b[31m" * 99: "ok"},
        nodes=[Node("\x1b[31m" * 99, "c", "1:1", True)],
        boot_id="\x1b" * 5000,
    )
    for name, check in verdicts.CHECKS.items():
        for text in check(hostile).evidence.values():
            assert text.isprintable(), name
            assert len(text) < 260, name
