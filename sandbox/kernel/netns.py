"""Links, addresses and network namespaces, over netlink by pyroute2 (its one home here).

pyroute2 takes 0.16 s to import, so this module is imported where a network is made, not by the command line.
Sources: rtnetlink(7), veth(4), network_namespaces(7).
"""

from __future__ import annotations

import atexit
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError


class Links:
    """A netlink socket for the links of one network namespace: the caller's at the time it is made."""

    def __init__(self) -> None:
        self._route: Any = IPRoute()

    def close(self) -> None:
        """Close the socket."""
        self._route.close()

    def __enter__(self) -> Links:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def index(self, name: str) -> int | None:
        """A link's number, None when there is no such link."""
        with suppress(OSError):
            return socket.if_nametoindex(name)
        return None

    def names(self, prefix: str) -> list[str]:
        """Names of links that begin with `prefix`."""
        return sorted(name for _, name in socket.if_nameindex() if name.startswith(prefix))

    def add_bridge(self, name: str) -> int:
        """Make a bridge, without STP: its ports forward at once. Returns its number.

        Raises:
            FileExistsError: there is a link of that name.
        """
        with _errors(name):
            # Given an address of its own, a bridge keeps it when ports come and go, and peers' ARP entries stay right.
            self._route.link("add", ifname=name, kind="bridge", br_stp_state=0, address="02:5b:00:00:00:01", state="up")
        found = self.index(name)
        if found is None:
            raise FileNotFoundError(2, "the bridge vanished", name)
        return found

    def add_veth(self, name: str, bridge: int, *, peer: str, mac: str, netns_pid: int = 0, netns_fd: int = -1) -> None:
        """Make a pair in one message: `name` up on the bridge, `peer` straight in another network namespace.

        Made there, the peer never shows on the host, and dies with that namespace.

        Raises:
            OSError
        """
        there: dict[str, Any] = {"ifname": peer, "address": mac}
        there |= {"net_ns_pid": netns_pid} if netns_pid else {"net_ns_fd": netns_fd}
        with _errors(name):
            self._route.link("add", ifname=name, kind="veth", peer=there, master=bridge, state="up")

    def delete(self, name: str) -> bool:
        """Delete a link; False when there is none."""
        found = self.index(name)
        if found is None:
            return False
        with suppress(FileNotFoundError), _errors(name):
            self._route.link("del", index=found)
        return True

    def up(self, name: str) -> None:
        """Set a link up."""
        with _errors(name):
            self._route.link("set", index=self._need(name), state="up")

    def add_address(self, name: str, address: str, prefix: int) -> None:
        """Give a link an address; one that it has already is kept."""
        with _errors(name), suppress(FileExistsError):
            try:
                self._route.addr("add", index=self._need(name), address=address, prefixlen=prefix)
            except NetlinkError as error:
                raise OSError(error.code, os.strerror(error.code), name) from None

    def delete_address(self, name: str, address: str, prefix: int) -> None:
        """Take an address from a link; one that is not there is fine."""
        found = self.index(name)
        if found is None:
            return
        try:
            self._route.addr("del", index=found, address=address, prefixlen=prefix)
        except NetlinkError as error:
            if error.code not in (99, 19):  # EADDRNOTAVAIL, ENODEV: it is gone
                raise OSError(error.code, os.strerror(error.code), name) from None

    def addresses(self, name: str) -> list[str]:
        """IPv4 addresses of a link, dotted quads."""
        found = self.index(name)
        if found is None:
            return []
        with _errors(name):
            return [
                str(message.get_attr("IFA_LOCAL"))
                for message in self._route.get_addr(family=socket.AF_INET, index=found)
            ]

    def _need(self, name: str) -> int:
        found = self.index(name)
        if found is None:
            raise FileNotFoundError(2, "no such link", name)
        return found


_shared: tuple[int, Links] | None = None


def shared() -> Links:
    """One handle per process, for the host's own network namespace: opening one costs more than using it.

    Raises:
        OSError: no netlink socket can be made.
    """
    global _shared  # noqa: PLW0603 - one socket for the life of the process is the point
    # A forked child must not talk over its parent's socket: the answers would mix.
    if _shared is None or _shared[0] != os.getpid():
        _shared = (os.getpid(), Links())
        atexit.register(_shared[1].close)
    return _shared[1]


@contextmanager
def _errors(name: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code), name) from None
