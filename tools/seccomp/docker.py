"""Generate the seccomp profile for Docker, so that containers get the same filter as the level namespace.

The format is that of `docker run --security-opt seccomp=`; see profiles/seccomp in moby's repository. dockerd reads the
profile, and runc makes the filter with libseccomp. Docker's default profile allows more, such as io_uring and AF_ALG. A
call that the runtime's libseccomp does not know is left out, and so refused.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable
from typing import Any

from tools.seccomp import policy
from tools.seccomp.compiler import MACHINES

_BITS = 32
_LOW_HALF = 0xFFFFFFFF
"""Mask of an int. The kernel ignores the upper half of the checked arguments, so a comparison must ignore it too."""

_ALLOW = "SCMP_ACT_ALLOW"
_REFUSE = "SCMP_ACT_ERRNO"
_MASKED = "SCMP_CMP_MASKED_EQ"


def profile() -> str:
    """Return the profile as JSON, one rule per line."""
    rules: list[dict[str, Any]] = [
        {"names": sorted(policy.ALLOWED), "action": _ALLOW},
        {"names": sorted(policy.NOT_IMPLEMENTED), "action": _REFUSE, "errnoRet": errno.ENOSYS},
        _rule("clone", _masked(policy.NAMESPACE_FLAGS, 0)),
        *(_rule("personality", _masked(_LOW_HALF, value)) for value in policy.PERSONALITIES),
        *(_rule("socket", _masked(_LOW_HALF, family)) for family in policy.FAMILIES),
        *(_rule("socketpair", _masked(_LOW_HALF, family)) for family in policy.PAIR_FAMILIES),
        *(_rule("ioctl", _masked(*block, argument=1)) for block in blocks_without(policy.REFUSED_IOCTLS)),
    ]
    # No subarchitectures: calls by the 32-bit and x32 ABIs kill the process.
    machines = [{"architecture": f"SCMP_ARCH_{machine.upper()}", "subArchitectures": []} for machine in MACHINES]
    head = {"defaultAction": _REFUSE, "archMap": machines, "syscalls": "RULES"}
    lines = ",\n".join(json.dumps(rule, separators=(",", ":")) for rule in rules)
    return json.dumps(head, separators=(",", ":")).replace('"RULES"', f"[\n{lines}\n]")


def _rule(name: str, argument: dict[str, Any]) -> dict[str, Any]:
    return {"names": [name], "action": _ALLOW, "args": [argument]}


def _masked(mask: int, value: int, *, argument: int = 0) -> dict[str, Any]:
    return {"index": argument, "value": mask, "valueTwo": value, "op": _MASKED}


def blocks_without(refused: Iterable[int]) -> list[tuple[int, int]]:
    """Return the largest aligned blocks, as (mask, value), of all 32-bit numbers except the refused ones.

    libseccomp combines rules by "or", and one rule can check an argument only once, so "neither of two values" cannot
    be expressed directly.
    """
    refused = sorted(set(refused))
    found = []

    def split(first: int, bits: int) -> None:
        inside = [number for number in refused if first <= number < first + (1 << bits)]
        if not inside:
            found.append((_LOW_HALF & ~((1 << bits) - 1), first))
        elif bits:
            split(first, bits - 1)
            split(first + (1 << (bits - 1)), bits - 1)

    split(0, _BITS)
    return found
