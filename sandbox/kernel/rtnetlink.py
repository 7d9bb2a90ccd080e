"""The netlink requests that every sandbox's start and end makes, packed by hand.

pyroute2 does the rest (`sandbox.kernel.netns`), but it takes 160 ms to import and 4 ms for a request that the kernel
answers in 1 ms (median of 15 veth pairs, busy 2-core host), and both would distort what this project measures.
Sources: rtnetlink(7), netlink(7), veth(4), linux/if_link.h.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from contextlib import suppress

_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_EXCL, _NLM_F_CREATE = 0x1, 0x4, 0x200, 0x400
_NLMSG_ERROR = 2
_RTM_NEWLINK, _RTM_DELLINK, _RTM_SETLINK, _RTM_NEWADDR, _RTM_DELADDR = 16, 17, 19, 20, 21
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MASTER, _IFLA_LINKINFO, _IFLA_NET_NS_PID, _IFLA_NET_NS_FD = 1, 3, 10, 18, 19, 28
_IFLA_NUM_TX_QUEUES, _IFLA_NUM_RX_QUEUES = 31, 32
_IFLA_PROTINFO, _IFLA_BRPORT_STATE, _IFLA_BRPORT_FLUSH, _BR_STATE_DISABLED = 12, 1, 24, 0
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_NESTED = 1 << 15
_IFF_UP = 1
_ONE_QUEUE = b"".join(struct.pack("HHI", 8, attribute, 1) for attribute in (_IFLA_NUM_TX_QUEUES, _IFLA_NUM_RX_QUEUES))
"""By default a veth gets a queue for each CPU, with entries in sysfs: a quarter of the time it takes to add one."""


def _attribute(kind: int, payload: bytes) -> bytes:
    length = 4 + len(payload)
    return struct.pack("HH", length, kind) + payload + b"\0" * (-length % 4)


def _ifinfo(index: int = 0, flags: int = 0) -> bytes:
    return struct.pack("BxHiII", socket.AF_UNSPEC, 0, index, flags, flags)


def _request(kind: int, flags: int, body: bytes, what: str) -> None:
    """Send one request to the kernel, in the calling thread's network namespace, and wait for the acknowledgement.

    Raises:
        OSError: the kernel's errno.
    """
    header = struct.pack("IHHII", 16 + len(body), kind, _NLM_F_REQUEST | _NLM_F_ACK | flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as sock:
        sock.settimeout(10)
        sock.send(header + body)
        answer = sock.recv(65536)
    code = -struct.unpack_from("i", answer, 16)[0]
    if struct.unpack_from("IH", answer)[1] != _NLMSG_ERROR or code:
        raise OSError(code, os.strerror(code), what)


def add_veth(name: str, bridge: int, *, peer: str, mac: str, netns_pid: int = 0, netns_fd: int = -1) -> None:
    """Add a veth pair in one message: `name` up on the bridge, `peer` in another network namespace.

    The peer is never visible on the host. When its namespace ends, both ends are deleted.

    Args:
        name: name of the end on the bridge, at most 15 characters.
        bridge: index of the bridge.
        peer: name of the other end.
        mac: hardware address of the other end, six pairs of hex digits.
        netns_pid: process whose network namespace gets the other end, or
        netns_fd: descriptor of that namespace.

    Raises:
        OSError
    """
    there = _attribute(_IFLA_IFNAME, peer.encode() + b"\0") + _attribute(
        _IFLA_ADDRESS, bytes.fromhex(mac.replace(":", ""))
    )
    if netns_pid:
        there += _attribute(_IFLA_NET_NS_PID, struct.pack("I", netns_pid))
    else:
        there += _attribute(_IFLA_NET_NS_FD, struct.pack("I", netns_fd))
    data = _attribute(_VETH_INFO_PEER | _NESTED, _ifinfo() + there + _ONE_QUEUE)
    info = _attribute(_IFLA_INFO_KIND, b"veth") + _attribute(_IFLA_INFO_DATA | _NESTED, data)
    body = (
        _ifinfo(flags=_IFF_UP)
        + _attribute(_IFLA_IFNAME, name.encode() + b"\0")
        + _attribute(_IFLA_MASTER, struct.pack("I", bridge))
        + _ONE_QUEUE
        + _attribute(_IFLA_LINKINFO | _NESTED, info)
    )
    _request(_RTM_NEWLINK, _NLM_F_CREATE | _NLM_F_EXCL, body, name)


def disable_port(name: str) -> None:
    """Disable a port of a bridge, and flush the bridge's forwarding entries for it.

    Raises:
        OSError: ENODEV, there is no such port.
    """
    port = _attribute(_IFLA_BRPORT_STATE, bytes([_BR_STATE_DISABLED])) + _attribute(_IFLA_BRPORT_FLUSH, b"")
    index = socket.if_nametoindex(name)
    message = struct.pack("BxHiII", socket.AF_BRIDGE, 0, index, 0, 0) + _attribute(_IFLA_PROTINFO | _NESTED, port)
    _request(_RTM_SETLINK, 0, message, name)


def delete_link(name: str) -> bool:
    """Delete a link. Returns False if there is none.

    Raises:
        OSError
    """
    try:
        _request(_RTM_DELLINK, 0, _ifinfo() + _attribute(_IFLA_IFNAME, name.encode() + b"\0"), name)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return False
        raise
    return True


def _ifaddr(link: str, address: str, prefix: int) -> bytes:
    packed = socket.inet_aton(address)
    body = struct.pack("BBBBi", socket.AF_INET, prefix, 0, 0, socket.if_nametoindex(link))
    return body + _attribute(_IFA_LOCAL, packed) + _attribute(_IFA_ADDRESS, packed)


def add_address(link: str, address: str, prefix: int) -> None:
    """Add an IPv4 address to a link. Does nothing if it has it already.

    Raises:
        OSError
    """
    with suppress(FileExistsError):
        _request(_RTM_NEWADDR, _NLM_F_CREATE | _NLM_F_EXCL, _ifaddr(link, address, prefix), link)


def delete_address(link: str, address: str, prefix: int) -> None:
    """Delete an IPv4 address from a link. Does nothing if the address or the link does not exist.

    Raises:
        OSError
    """
    try:
        body = _ifaddr(link, address, prefix)
    except OSError:
        return  # if_nametoindex(3): there is no such link
    try:
        _request(_RTM_DELADDR, 0, body, link)
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.EADDRNOTAVAIL):
            raise
