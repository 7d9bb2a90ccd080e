"""Failpoints: numbered places in the life of a sandbox, one after each step that creates or removes something.

If a command dies at any of them, what it created is cleaned up by its own error handling (an error, an interrupt) or by
`sandbox prune` (SIGKILL, a power cut). The tests kill commands at every failpoint that a level passes. In production no
listener is set, and passing a failpoint costs one comparison.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum


class Failpoint(IntEnum):
    """A place in a command. Numbers below 40 are in a start, those from 40 on in an end or a removal.

    Attributes:
        what: what has been done when a command reaches the failpoint.
    """

    what: str

    def __new__(cls, number: int, what: str = "") -> Failpoint:
        """Create a member that is an integer and has a description."""
        member = int.__new__(cls, number)
        member._value_ = number
        member.what = what
        return member

    DIRECTORY_MADE = 1, "the sandbox's directory exists, not locked yet"
    ID_CLAIMED = 2, "the directory exists and is locked"
    NETWORK_UP = 3, "the lab's bridge, generator and rules exist"
    CLAIM_WRITTEN = 4, "the claim of a name, address or port is written under a temporary name"
    ADDRESS_CLAIMED = 5, "the address is claimed"
    NAME_CLAIMED = 6, "the name is claimed, there is no record yet"
    RECORD_PENDING = 7, "a record is written under a temporary name"
    RECORD_WRITTEN = 8, "the record is on disk: creating"
    APP_STAGED = 9, "the application's files are copied"
    IMAGE_READY = 10, "the image is built, the engine and its network are ready"
    NAMESPACES_MADE = 11, "a child waits in fresh namespaces"
    CGROUP_MADE = 12, "the control group exists, with its limits"
    ROOT_MOUNTED = 13, "the root is mounted below the sandbox's directory"
    ADDRESS_SERVED = 14, "the address is on the host's bridge"
    LINK_PLUGGED = 15, "the sandbox's link is on the bridge"
    CHILD_READY = 16, "the child waits to become the workload"
    FILES_WRITTEN = 17, "the machine's keys, initramfs and logs are in the directory"
    CONTAINER_CREATED = 18, "the container is created, not started"
    DOMAIN_DEFINED = 19, "QEMU runs, its guest does not"
    CREATED = 20, "everything is created, and the record says how to find it"
    BOOTED = 21, "the guest's init has reported"
    STARTED = 22, "the workload runs"
    ISOLATED = 23, "the sandbox's port on the bridge is isolated from the others"
    PUBLISHED = 24, "ports are published on the host"
    REPLIED = 25, "a correct reply was served"
    LIMITS_READ = 26, "the limits were read back"
    SAVED_RUNNING = 27, "the record is on disk: running"

    ENDING = 40, "a command is about to end the workload"
    ENDED = 41, "the workload has ended, the record does not say so"
    SAVED_EXITED = 42, "the record is on disk: exited"
    REMOVING = 43, "a command is about to remove the sandbox"
    PROCESSES_KILLED = 44, "the last process has ended, its control group exists"
    CGROUP_REMOVED = 45, "the control group is removed"
    ROOT_UNMOUNTED = 46, "the root is unmounted"
    CONTAINER_REMOVED = 47, "the container is removed"
    DOMAIN_REMOVED = 48, "QEMU has ended, the machine's files exist"
    UNPUBLISHED = 49, "published ports are withdrawn"
    RESOURCES_REMOVED = 50, "everything that the driver created is removed"
    DIRECTORY_MOVED = 51, "the directory is renamed: other commands no longer see the sandbox"
    CLAIM_DROPPED = 52, "a name, address or port is free again"
    STATE_REMOVED = 53, "the directory is removed"
    SHARED_REMOVED = 54, "what a level keeps for all its sandboxes is removed"
    LAB_REMOVED = 55, "the lab's bridge, generator and rules are removed"


listener: Callable[[Failpoint], None] | None = None
"""Called with every failpoint that this process reaches; only tests set it."""


def reached(failpoint: Failpoint) -> None:
    """Report to the listener, if any, that a failpoint is reached."""
    if listener is not None:
        listener(failpoint)
