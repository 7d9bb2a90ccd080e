"""Check the capabilities of this host; for a missing one, say why, and the one command that provides it.

Importing this package is fast: the checks are imported on first use. None of them raises if the host lacks something.
Slow ones (does KVM run a guest, does gVisor run a container) try it once, and remember the result until the next boot.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox.host.checks import Finding


@dataclass(frozen=True, slots=True)
class Missing:
    """A capability that this host lacks.

    Attributes:
        what: id of the capability, such as "docker.daemon".
        reason: why it is missing, one line.
        remedy: how to provide it, one command or line.
    """

    what: str
    reason: str
    remedy: str


def check(name: str) -> Missing | None:
    """Check one capability of this host. Returns None if the host has it.

    Raises:
        KeyError: there is no capability of that name.
    """
    from sandbox.host.checks import Survey

    return _missing(Survey().look(name))


def missing_extra(name: str) -> list[Missing]:
    """Return what an extra, such as "vagrant", needs and this host lacks; empty if it is available."""
    from sandbox.host.checks import EXTRAS, Survey

    return [missing for finding in Survey().level(EXTRAS[name]) if (missing := _missing(finding))]


def missing_for(requires: Iterable[str]) -> list[Missing]:
    """Return what an isolation level needs and this host lacks; empty if the level is available.

    Takes a few milliseconds once the slow checks are remembered.

    Args:
        requires: the capabilities that the level needs beside those that every level needs.

    Raises:
        KeyError: there is no capability of that name.
    """
    from sandbox.host.checks import COMMON, Survey

    return [missing for finding in Survey().level((*COMMON, *requires)) if (missing := _missing(finding))]


def kvm_works() -> bool:
    """Return whether KVM runs a guest here, tried once per boot. See `sandbox.host.kvm`."""
    from sandbox.host.kvm import verdict

    return verdict().works


def _missing(finding: Finding) -> Missing | None:
    return None if finding.ok else Missing(finding.name, finding.detail, finding.remedy)
