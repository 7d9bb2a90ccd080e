"""The lab network: one bridge without an uplink, shared by every level, and the generator's namespace on it.

198.18.0.0/15 is reserved for benchmarking (RFC 2544, RFC 6890), so it does not collide with a LAN. nftables rules
restrict the traffic, because Docker's own "internal" networks leave every service of the host open to containers:

- the host may connect to sandboxes; a sandbox may only reply;
- the generator may connect to sandboxes, and to `process` sandboxes, which serve on the host; it has no route out;
- sandboxes cannot reach each other;
- nothing is forwarded between the bridge and any other link.

The generator's packets are exempt from connection tracking: no rule needs it, and its cost would be that of the host's
firewall, not of the isolation level that is measured.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import subprocess
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress

from sandbox.errors import EngineError, SandboxError
from sandbox.kernel import ifconfig, nftables, nsfile, rtnetlink, syscalls
from sandbox.state.store import Store

BRIDGE = "sbx0"
SUBNET = "198.18.0.0/16"
PREFIX = 16
NETMASK = "255.255.0.0"
HOST_ADDRESS = "198.18.0.1"
GENERATOR_ADDRESS = "198.18.0.2"
GENERATOR_NETNS = "/run/netns/sbxgen"
GENERATOR_LINK = "sbxgen"
GENERATOR_MAC = "02:5b:c6:12:00:02"
DOCKER_NETWORK = "sandbox-lab"
DOCKER_RANGE = "198.18.1.0/24"
"""The range from which Docker may assign addresses itself; those of sandboxes are above it."""
HOST_STACK = "198.18.128.0/17"
_OWN_STACK = ("198.18.2.0", "198.18.127.255")
_HOST_STACK = ("198.18.128.0", "198.18.255.255")
"""Two ranges, so that a reused address never moves between a sandbox's own hardware address and the bridge's. If it
did, a peer's ARP cache would send to the previous owner for up to 30 s (arp(7))."""

LINK_PREFIX = "sbx"
TABLE = "sandbox_lab"
_COMMENT = "sandbox-lab"

_RULES = f"""
add table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  chain untracked {{
    type filter hook prerouting priority raw; policy accept;
    iifname "{BRIDGE}" ip saddr {GENERATOR_ADDRESS} notrack
    iifname "{BRIDGE}" ip daddr {GENERATOR_ADDRESS} notrack
  }}
  chain untracked_answers {{
    type filter hook output priority raw; policy accept;
    oifname "{BRIDGE}" ip daddr {GENERATOR_ADDRESS} notrack
  }}
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname != "{BRIDGE}" accept
    ip saddr {GENERATOR_ADDRESS} ip daddr {HOST_STACK} accept
    ct state established,related accept
    drop
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    iifname "{BRIDGE}" oifname "{BRIDGE}" accept
    iifname "{BRIDGE}" drop
    oifname "{BRIDGE}" drop
  }}
}}
"""


def interface_name(ident: str) -> str:
    """Name the host's end of a sandbox's veth or tap: at most 15 characters (IFNAMSIZ), unique by 44 bits of the id."""
    return LINK_PREFIX + ident[:11]


def _is_link(name: str) -> bool:
    return os.path.exists(f"/sys/class/net/{name}")


def ready() -> bool:
    """Return whether the lab is complete: bridge, generator's namespace and link, and nftables rules."""
    links_up = all(_is_link(name) for name in (BRIDGE, GENERATOR_LINK))
    return links_up and nsfile.is_netns(GENERATOR_NETNS) and nftables.table_exists("inet", TABLE)


def ensure() -> None:
    """Create the missing parts of the lab. The caller holds the lock `network`.

    Raises:
        EngineError: the kernel refuses; the message says what.
    """
    try:
        if not ready():
            _build()
    except OSError as error:
        raise EngineError(f"the lab network could not be created: {error.strerror or error}") from error


def _build() -> None:
    from sandbox.kernel import netns

    # Rules first, so that no sandbox is ever on an unprotected bridge.
    nftables.load(_RULES)
    _docker_accept(present=True)
    with netns.Links() as links:
        if links.index(BRIDGE) is None:
            links.add_bridge(BRIDGE)
        links.up(BRIDGE)
    rtnetlink.add_address(BRIDGE, HOST_ADDRESS, PREFIX)
    if not nsfile.is_netns(GENERATOR_NETNS):
        nsfile.remove_netns(GENERATOR_NETNS)
        rtnetlink.delete_link(GENERATOR_LINK)
        nsfile.make_netns(GENERATOR_NETNS)
    if not _is_link(GENERATOR_LINK):
        descriptor = os.open(GENERATOR_NETNS, os.O_RDONLY | os.O_CLOEXEC)
        try:
            bridge = socket.if_nametoindex(BRIDGE)
            rtnetlink.add_veth(GENERATOR_LINK, bridge, peer="eth0", mac=GENERATOR_MAC, netns_fd=descriptor)
        finally:
            os.close(descriptor)
    with in_generator():
        ifconfig.up("lo")
        ifconfig.up("eth0", GENERATOR_ADDRESS, NETMASK)


def _docker_accept(*, present: bool) -> None:
    """Add or delete the rule that accepts bridged packets in iptables' FORWARD chain, whose policy Docker sets to DROP.

    With br_netfilter, bridged packets pass through that chain, and an accept in our table does not overrule a drop in
    another; only a rule in that chain does.
    """
    rule = ["FORWARD", "-i", BRIDGE, "-o", BRIDGE, "-m", "comment", "--comment", _COMMENT, "-j", "ACCEPT"]
    with suppress(FileNotFoundError):
        there = subprocess.run(["iptables", "-w", "-C", *rule], capture_output=True, check=False, timeout=30)
        if present != (there.returncode == 0):
            act = ["-I"] if present else ["-D"]
            subprocess.run(["iptables", "-w", *act, *rule], capture_output=True, check=False, timeout=30)


def remains() -> list[str]:
    """List the parts of the lab that exist, one line each; empty when it is gone."""
    found = [f"link {name}" for name in (BRIDGE, GENERATOR_LINK) if _is_link(name)]
    if os.path.lexists(GENERATOR_NETNS):
        found.append(f"network namespace {GENERATOR_NETNS}")
    with suppress(OSError):
        if nftables.table_exists("inet", TABLE):
            found.append(f"nftables table inet {TABLE}")
    return found


def teardown() -> list[str]:
    """Remove the lab, complete or not. The caller holds the lock `network` and has made sure that nobody uses it.

    Returns:
        One line for each part removed.

    Raises:
        EngineError: a part could not be removed.
    """
    removed = remains()
    try:
        rtnetlink.delete_link(GENERATOR_LINK)
        nsfile.remove_netns(GENERATOR_NETNS)
        rtnetlink.delete_link(BRIDGE)
        _docker_accept(present=False)
        if nftables.table_exists("inet", TABLE):
            nftables.load(f"delete table inet {TABLE}\n")
    except OSError as error:
        raise EngineError(f"the lab network could not be removed: {error.strerror or error}") from error
    return removed


def stray_links(known: Collection[str]) -> list[str]:
    """Return the names of sandboxes' links whose id is not in `known`."""
    names = [name for _, name in socket.if_nameindex()]
    expected = {interface_name(ident) for ident in known}
    return [name for name in names if re.fullmatch(LINK_PREFIX + "[0-9a-f]{11}", name) and name not in expected]


def stray_addresses(store: Store) -> list[str]:
    """Return the addresses on the bridge that no sandbox claims, left by `process` sandboxes."""
    from sandbox.kernel import netns

    with netns.Links() as links:
        found = links.addresses(BRIDGE)
    # Addresses first, claims second: a sandbox claims an address before it adds it.
    used = store.used_addresses()
    return [one for one in found if one != HOST_ADDRESS and one not in used]


def allocate(store: Store, ident: str, *, own_stack: bool) -> str:
    """Claim the lowest free address. The caller holds the lock `network`.

    Args:
        store: the store of the claims.
        ident: the sandbox's id.
        own_stack: whether the sandbox has a network stack of its own, or serves on the host's.

    Raises:
        SandboxError: all addresses (32,000) are in use.
    """
    used = store.used_addresses()
    low, high = (int.from_bytes(socket.inet_aton(end)) for end in (_OWN_STACK if own_stack else _HOST_STACK))
    for number in range(low, high + 1):
        address = socket.inet_ntoa(number.to_bytes(4))
        if number & 0xFF not in (0, 255) and address not in used and store.claim_address(address, ident):
            return address
    raise SandboxError("every address of the lab network is in use", "sandbox prune")


def attach(ident: str, mac: str, netns_pid: int, address: str) -> None:
    """Connect a network namespace to the bridge by a veth; the end inside is `eth0`, up and with its address.

    Raises:
        EngineError
    """
    try:
        bridge = socket.if_nametoindex(BRIDGE)
        rtnetlink.add_veth(interface_name(ident), bridge, peer="eth0", mac=mac, netns_pid=netns_pid)
        isolate_ports(ident)
        # Done from here and not by the process inside, which sets up the rest of its isolation meanwhile.
        with nsfile.inside(f"/proc/{netns_pid}/ns/net"):
            ifconfig.up("lo")
            ifconfig.up("eth0", address, NETMASK)
    except OSError as error:
        raise EngineError(f"it could not be connected to the lab network: {error.strerror or error}") from error


def isolate_ports(ident: str | None = None) -> None:
    """Mark ports of the bridge as isolated, so that they cannot reach each other. See bridge(8), `isolated`.

    Args:
        ident: id of a sandbox; if it has a link named after it, only that port is marked. Otherwise (no id, or an
            engine that names its links itself, such as Docker) every port but the generator's.

    Raises:
        EngineError
    """
    if ident is not None and _is_link(interface_name(ident)):
        ports = [interface_name(ident)]
    else:
        try:
            ports = os.listdir(f"/sys/class/net/{BRIDGE}/brif")
        except FileNotFoundError:
            return
    for port in ports:
        if port == GENERATOR_LINK:
            continue
        try:
            _mark_isolated(f"/sys/class/net/{BRIDGE}/brif/{port}/isolated")
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENODEV):  # the port may be deleted meanwhile
                raise EngineError(f"the port {port} could not be isolated: {error.strerror}") from error


def _mark_isolated(path: str) -> None:
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if os.read(descriptor, 8).strip() != b"1":
            os.write(descriptor, b"1")
    finally:
        os.close(descriptor)


def unplug(ident: str) -> None:
    """Disable a link that the kernel is about to delete with its network namespace, which takes a while.

    Until then, a namespace whose last process has ended still answers for its address, and would receive the first
    packets for the next sandbox with that address.
    """
    with suppress(OSError):  # it is gone already
        rtnetlink.disable_port(interface_name(ident))


def detach(ident: str) -> None:
    """Delete a sandbox's link if it still exists.

    Raises:
        EngineError
    """
    name = interface_name(ident)
    if _is_link(name):
        delete_link(name)


def delete_link(name: str) -> None:
    """Delete a link by name. Does nothing if it does not exist.

    Raises:
        EngineError
    """
    try:
        rtnetlink.delete_link(name)
    except OSError as error:
        raise EngineError(f"the link {name} could not be deleted: {error.strerror or error}") from error


def serve_on_host(address: str) -> None:
    """Add an address of the host to the bridge; the rules open its range to the generator only.

    Raises:
        EngineError
    """
    try:
        rtnetlink.add_address(BRIDGE, address, 32)
    except OSError as error:
        raise EngineError(f"the address {address} could not be added to {BRIDGE}: {error.strerror or error}") from error


def unserve_on_host(address: str) -> None:
    """Undo `serve_on_host`; idempotent.

    Raises:
        EngineError
    """
    try:
        rtnetlink.delete_address(BRIDGE, address, 32)
    except OSError as error:
        raise EngineError(f"the address {address} could not be removed: {error.strerror or error}") from error


@contextmanager
def in_generator() -> Iterator[None]:
    """Move the calling thread into the generator's network namespace for a block; sockets made in it stay there.

    See setns(2): the network namespace is an attribute of a thread.

    Raises:
        EngineError: the lab network does not exist.
    """
    back = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            there = os.open(GENERATOR_NETNS, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise EngineError("the lab network is not up", "start a sandbox first") from error
        try:
            syscalls.setns(there, syscalls.CLONE_NEWNET)
        finally:
            os.close(there)
        try:
            yield
        finally:
            syscalls.setns(back, syscalls.CLONE_NEWNET)
    finally:
        os.close(back)


def generator_socket(timeout: float) -> socket.socket:
    """Create a TCP socket in the generator's network namespace.

    Args:
        timeout: seconds for each operation.

    Raises:
        EngineError: the lab network does not exist.
    """
    return generator_sockets(1, timeout)[0]


def generator_sockets(count: int, timeout: float) -> list[socket.socket]:
    """Create several TCP sockets in the generator's network namespace with a single visit.

    Raises:
        EngineError: the lab network does not exist.
    """
    with in_generator():
        made = [socket.socket(socket.AF_INET, socket.SOCK_STREAM) for _ in range(count)]
    for one in made:
        one.settimeout(timeout)
    return made


def generator_command(argv: Sequence[str]) -> list[str]:
    """Return the command that runs `argv` in the generator's network namespace."""
    return ["nsenter", f"--net={GENERATOR_NETNS}", "--", *argv]
