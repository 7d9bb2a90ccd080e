"""Load and list nftables rules by nft(8), and test for a table over netlink, which is faster."""

from __future__ import annotations

import errno
import json
import os
import socket
import struct
import subprocess

_NETLINK_NETFILTER = 12
_NFNL_SUBSYS_NFTABLES = 10
_NFT_MSG_GETTABLE = 1
_NLM_F_REQUEST = 1
_NLMSG_ERROR = 2
_NFTA_TABLE_NAME = 1
FAMILIES = {"inet": 1, "bridge": 7}


def load(rules: str) -> None:
    """Apply a script of nft(8) in one transaction: all of it or none.

    Raises:
        OSError: nft is not installed, or it refuses the rules; the error has its message.
    """
    try:
        done = subprocess.run(["nft", "-f", "-"], input=rules.encode(), capture_output=True, check=False, timeout=30)
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "nft is not installed (apt-get install nftables)") from None
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise OSError(errno.EINVAL, f"nft: {words[0] if words else 'refused the rules'}")


def map_elements(family: str, table: str, name: str) -> list[tuple[int, str, str, int]]:
    """List the elements of a map of ports to an address and a port. Empty if the table does not exist.

    Returns:
        For each: key, comment, address, port.

    Raises:
        OSError: nft is not installed, or its output has an unknown form.
    """
    if not table_exists(family, table):
        return []
    done = subprocess.run(
        ["nft", "-j", "list", "map", family, table, name], capture_output=True, check=False, timeout=30
    )
    if done.returncode:
        if not table_exists(family, table):  # it was deleted in between
            return []
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise OSError(errno.EINVAL, f"nft: {words[0] if words else 'the map could not be listed'}")
    found = []
    try:
        for item in json.loads(done.stdout)["nftables"]:
            for key, value in item.get("map", {}).get("elem", ()):
                # An element without a comment is a bare number (libnftables-json(5)).
                whole = key["elem"] if isinstance(key, dict) else {"val": key}
                address, port = value["concat"]
                found.append((int(whole["val"]), str(whole.get("comment", "")), str(address), int(port)))
    except (ValueError, KeyError, TypeError) as error:
        raise OSError(errno.EPROTO, f"nft listed the map in an unknown form: {error}") from error
    return found


def table_exists(family: str, name: str) -> bool:
    """Return whether a table exists. One netlink message takes 0.1 ms, nft(8) 5 ms.

    Raises:
        OSError: the kernel does not reply.
    """
    encoded = name.encode() + b"\0"
    attribute = struct.pack("HH", 4 + len(encoded), _NFTA_TABLE_NAME) + encoded
    attribute += b"\0" * (-len(attribute) % 4)
    body = struct.pack("BBH", FAMILIES[family], 0, 0) + attribute
    kind = _NFNL_SUBSYS_NFTABLES << 8 | _NFT_MSG_GETTABLE
    header = struct.pack("IHHII", 16 + len(body), kind, _NLM_F_REQUEST, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER) as sock:
        sock.settimeout(5)
        sock.bind((0, 0))
        sock.send(header + body)
        answer = sock.recv(65536)
    _, kind, _, _, _ = struct.unpack_from("IHHII", answer)
    if kind != _NLMSG_ERROR:
        return True
    code = -struct.unpack_from("i", answer, 16)[0]
    if code in (errno.ENOENT, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), name)
