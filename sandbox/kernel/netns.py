"""Links and addresses over netlink, by pyroute2. No other module imports it.

pyroute2 takes 0.16 s to import, so this module is imported only where the lab is made or swept; the requests of every
start are in `sandbox.kernel.rtnetlink`. Sources: rtnetlink(7), veth(4).
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError


class Links:
    """A netlink socket for the links of the network namespace that the caller is in when it creates this."""

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
        """Return a link's index; None if there is no such link."""
        with suppress(OSError):
            return socket.if_nametoindex(name)
        return None

    def add_bridge(self, name: str) -> int:
        """Add a bridge without STP, so that its ports forward at once, and return its index.

        Raises:
            FileExistsError: there is a link of that name.
        """
        with _errors(name):
            # A bridge with an address of its own keeps it when ports come and go, so peers' ARP entries stay valid.
            self._route.link("add", ifname=name, kind="bridge", br_stp_state=0, address="02:5b:00:00:00:01", state="up")
        found = self.index(name)
        if found is None:
            raise FileNotFoundError(2, "the bridge vanished", name)
        return found

    def up(self, name: str) -> None:
        """Set a link up."""
        with _errors(name):
            self._route.link("set", index=self._need(name), state="up")

    def addresses(self, name: str) -> list[str]:
        """Return a link's IPv4 addresses as dotted quads; none if there is no such link."""
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


@contextmanager
def _errors(name: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code), name) from None
