"""The reviewed list of system calls as a seccomp profile for Docker: a container gets the namespace level's filter.

The format is the one of `docker run --security-opt seccomp=`, see profiles/seccomp in moby's repository. dockerd reads
it, runc makes the filter with libseccomp. Docker's default profile is wider: it lets io_uring and AF_ALG through, for
one. A call that is newer than the runtime's libseccomp has no name there and is left out, so that it is refused.
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
"""The checked arguments are of type int in the kernel, which drops the upper half; a comparison must drop it too."""

_ALLOW = "SCMP_ACT_ALLOW"
_REFUSE = "SCMP_ACT_ERRNO"
_MASKED = "SCMP_CMP_MASKED_EQ"


def profile() -> str:
    """The profile as JSON, a rule a line."""
    rules: list[dict[str, Any]] = [
        {"names": sorted(policy.ALLOWED), "action": _ALLOW},
        {"names": sorted(policy.NOT_IMPLEMENTED), "action": _REFUSE, "errnoRet": errno.ENOSYS},
        _rule("clone", _masked(policy.NAMESPACE_FLAGS, 0)),
        *(_rule("personality", _masked(_LOW_HALF, value)) for value in policy.PERSONALITIES),
        *(_rule("socket", _masked(_LOW_HALF, family)) for family in policy.FAMILIES),
        *(_rule("socketpair", _masked(_LOW_HALF, family)) for family in policy.PAIR_FAMILIES),
        *(_rule("ioctl", _masked(*block, argument=1)) for block in blocks_without(policy.REFUSED_IOCTLS)),
    ]
    # One architecture each, with no other beside it: calls through the ABIs of 32 bits and x32 kill the process.
    machines = [{"architecture": f"SCMP_ARCH_{machine.upper()}", "subArchitectures": []} for machine in MACHINES]
    head = {"defaultAction": _REFUSE, "archMap": machines, "syscalls": "RULES"}
    lines = ",\n".join(json.dumps(rule, separators=(",", ":")) for rule in rules)
    return json.dumps(head, separators=(",", ":")).replace('"RULES"', f"[\n{lines}\n]")


def _rule(name: str, argument: dict[str, Any]) -> dict[str, Any]:
    return {"names": [name], "action": _ALLOW, "args": [argument]}


def _masked(mask: int, value: int, *, argument: int = 0) -> dict[str, Any]:
    return {"index": argument, "value": mask, "valueTwo": value, "op": _MASKED}


def blocks_without(refused: Iterable[int]) -> list[tuple[int, int]]:
    """All numbers of 32 bits but a few, as (mask, value) of the largest aligned blocks that hold none of those.

    libseccomp joins rules by "or", and within one rule looks at an argument once: "neither of two" cannot be said
    otherwise.
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
