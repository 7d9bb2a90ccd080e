"""Publish ports of sandboxes on the host's 127.0.0.1 by nftables rules, without a proxy process.

A connection to 127.0.0.1:HOST is redirected to the sandbox's address (dnat in the output hook), with the bridge's
address as its source (snat), so that the sandbox can reply. The kernel drops packets with a loopback address on other
links unless the link has `route_localnet` set (ip-sysctl, Documentation/networking). It is set on our bridge only,
while a port is published, and behind a rule that drops every packet from the bridge that has a loopback address.
Replies to published connections have the bridge's address until conntrack rewrites them, so the rule drops forged
packets only.

The rules are in a table of their own, which exists only while a port is published. A port is an element of a map with
its sandbox's id as comment, so that it can be found when nothing else of the sandbox is left.
"""

from __future__ import annotations

import socket
from collections.abc import Collection, Iterable
from pathlib import Path

from sandbox.errors import BusyError, EngineError
from sandbox.kernel import nftables
from sandbox.network.lab import BRIDGE, HOST_ADDRESS
from sandbox.spec import Publish
from sandbox.state.record import ID_PATTERN
from sandbox.state.store import Store

TABLE = "sandbox_publish"
ADDRESS = "127.0.0.1"
_MAP = "ports"
_PREFIX = "sbx-"
_ROUTE_LOCALNET = Path(f"/proc/sys/net/ipv4/conf/{BRIDGE}/route_localnet")

# Priorities are numbers, because nft 1.0 accepts the name `dstnat` in the output hook only in the family `ip`.
_RULES = f"""
table inet {TABLE} {{
  map {_MAP} {{
    type inet_service : ipv4_addr . inet_service
  }}
  chain forged {{
    type filter hook prerouting priority raw; policy accept;
    iifname "{BRIDGE}" ip daddr 127.0.0.0/8 drop
    iifname "{BRIDGE}" ip saddr 127.0.0.0/8 drop
  }}
  chain inward {{
    type nat hook output priority -100; policy accept;
    ip daddr {ADDRESS} dnat ip to tcp dport map @{_MAP}
  }}
  chain answerable {{
    type nat hook postrouting priority 100; policy accept;
    oifname "{BRIDGE}" ip saddr 127.0.0.0/8 snat ip to {HOST_ADDRESS}
  }}
}}
"""


def claim(store: Store, ident: str, ports: Iterable[Publish]) -> None:
    """Claim ports of the host for a sandbox, before anything of it is created.

    Raises:
        BusyError: another sandbox has published one, or a program listens on it.
    """
    for one in ports:
        if not store.claim_port(one.host, ident):
            raise BusyError(f"port {one.host} is already published by {_holder(store, one.host)}", _suggest_port(one))
        _check_no_listener(one)


def _holder(store: Store, number: int) -> str:
    owner = store.port_owner(number)
    name = next((record.name for record in store.records() if record.id == owner), "a sandbox that is being removed")
    return f"the sandbox {name}" if name != owner else name


def _suggest_port(one: Publish) -> str:
    return f"choose another port of the host, such as -p {one.host + 1 if one.host < 65535 else 8000}:{one.inside}"


def _check_no_listener(one: Publish) -> None:
    """Refuse a port on which a program listens: the redirection would hide it silently."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as trial:
        # With this option only a listener makes bind(2) fail, not ended connections in TIME_WAIT.
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((ADDRESS, one.host))
        except OSError as error:
            raise BusyError(f"port {one.host} of {ADDRESS} is in use: {error.strerror}", _suggest_port(one)) from None


def publish(ident: str, address: str, ports: Collection[Publish]) -> None:
    """Publish the ports of a sandbox. The caller holds the lock `network`.

    Args:
        ident: the sandbox's id.
        address: the sandbox's address on the lab network; the host's if it has no network stack of its own.
        ports: claimed before, see `claim`.

    Raises:
        EngineError: the kernel refuses; nothing is published.
    """
    if not ports:
        return
    elements = ", ".join(f'{one.host} comment "{_PREFIX}{ident}" : {address} . {one.inside}' for one in ports)
    try:
        table = "" if nftables.table_exists("inet", TABLE) else _RULES
        nftables.load(f"{table}\nadd element inet {TABLE} {_MAP} {{ {elements} }}\n")
        # Only now, when the rule against forged packets is in force.
        _ROUTE_LOCALNET.write_text("1", encoding="ascii")
    except OSError as error:
        raise EngineError(f"the ports could not be published: {error.strerror or error}") from error


def unpublish(ident: str) -> list[str]:
    """Withdraw a sandbox's published ports. Idempotent. The caller holds the lock `network`.

    Returns:
        One line per port.

    Raises:
        EngineError: a port could not be withdrawn.
    """
    return _remove({_PREFIX + ident})


def prune(known: Collection[str], *, dry_run: bool) -> list[str]:
    """Withdraw published ports of sandboxes whose id is not in `known`. The caller holds the lock `network`.

    Returns:
        One line per port.

    Raises:
        EngineError: a port could not be withdrawn.
    """
    comments = {comment for _, comment, _, _ in _published()}
    stray = {
        comment
        for comment in comments
        if not ID_PATTERN.fullmatch(ident := comment.removeprefix(_PREFIX)) or ident not in known
    }
    if dry_run:
        return [_describe(one) for one in _published() if one[1] in stray]
    return _remove(stray)


def published_ports(ident: str) -> list[Publish]:
    """Return the ports of a sandbox that are published now, as the kernel has them.

    Raises:
        EngineError
    """
    return [Publish(host, inside) for host, comment, _, inside in _published() if comment == _PREFIX + ident]


def teardown() -> list[str]:
    """Withdraw every published port. The caller holds the lock `network` and has made sure that nobody uses the lab.

    Returns:
        One line per port.

    Raises:
        EngineError: a port could not be withdrawn.
    """
    return _remove({comment for _, comment, _, _ in _published()})


def remains() -> list[str]:
    """List what publishing has left on the host, one line each; empty when nothing is published."""
    return [f"nftables table inet {TABLE}"] if nftables.table_exists("inet", TABLE) else []


def _published() -> list[tuple[int, str, str, int]]:
    try:
        return nftables.map_elements("inet", TABLE, _MAP)
    except OSError as error:
        raise EngineError(f"the published ports could not be listed: {error.strerror or error}") from error


def _remove(comments: Collection[str]) -> list[str]:
    found = _published()
    mine = [one for one in found if one[1] in comments]
    try:
        if len(mine) == len(found):
            if nftables.table_exists("inet", TABLE):
                # The setting first, so that it is never in force without the rule against forged packets.
                if _ROUTE_LOCALNET.exists():
                    _ROUTE_LOCALNET.write_text("0", encoding="ascii")
                nftables.load(f"delete table inet {TABLE}\n")
        elif mine:
            numbers = ", ".join(str(one[0]) for one in mine)
            nftables.load(f"delete element inet {TABLE} {_MAP} {{ {numbers} }}\n")
    except OSError as error:
        raise EngineError(f"the published ports could not be withdrawn: {error.strerror or error}") from error
    return [_describe(one) for one in mine]


def _describe(one: tuple[int, str, str, int]) -> str:
    return f"published port {ADDRESS}:{one[0]}"
