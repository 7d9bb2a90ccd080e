"""What this host can do, and if not, why, and the one command that mends it.

Importing this package is cheap: everything that looks at the host is imported by the first question. Nothing here
raises for what a host lacks. Verdicts that cost time (does KVM run a guest, does gVisor run a container) are found by
trying, once, and remembered per boot of the host.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sandbox.host.checks import Finding


@dataclass(frozen=True, slots=True)
class Missing:
    """One thing that this host lacks.

    Attributes:
        what: the capability's id, such as "docker.daemon".
        reason: one line.
        remedy: one command or one line that mends it.
    """

    what: str
    reason: str
    remedy: str


def check(name: str) -> Missing | None:
    """Look at one capability of this host; None when it is there.

    Raises:
        KeyError: there is no capability of that name.
    """
    from sandbox.host.checks import Survey

    return _missing(Survey().look(name))


def missing_for(requires: Iterable[str]) -> list[Missing]:
    """What this host lacks for an isolation level; empty when the level is available.

    Takes a few milliseconds once the verdicts are remembered.

    Args:
        requires: the capabilities that the level needs beside those that every level needs.

    Raises:
        KeyError: there is no capability of that name.
    """
    from sandbox.host.checks import COMMON, Survey

    return [missing for finding in Survey().level((*COMMON, *requires)) if (missing := _missing(finding))]


def kvm_works() -> bool:
    """Whether KVM runs a guest here, found by running one; remembered per boot. See `sandbox.host.kvm`."""
    from sandbox.host.kvm import verdict

    return verdict().works


def _missing(finding: Finding) -> Missing | None:
    return None if finding.ok else Missing(finding.name, finding.detail, finding.remedy)
