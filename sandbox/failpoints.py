"""Numbered points in the life of a sandbox: one after each act that leaves something behind.

A command that dies at any of them leaves what is undone by its own unwinding (an error, an interrupt) or by `sandbox
prune` (SIGKILL, a power cut). The tests kill commands at every failpoint that a level passes; in production nobody
listens, and passing one costs a look at a variable.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum


class Failpoint(IntEnum):
    """Where a command is. Numbers below 40 are on the way in, those from 40 on on the way out.

    Attributes:
        what: what has happened when a command comes by.
    """

    what: str

    def __new__(cls, number: int, what: str = "") -> Failpoint:
        """An integer that says what it stands for."""
        member = int.__new__(cls, number)
        member._value_ = number
        member.what = what
        return member

    DIRECTORY_MADE = 1, "the sandbox's directory is there, nobody holds its lock yet"
    ID_CLAIMED = 2, "the directory is there and locked"
    NETWORK_UP = 3, "bridge, generator and rules of the lab are there"
    CLAIM_WRITTEN = 4, "a name, address or port is written down under a temporary name"
    ADDRESS_CLAIMED = 5, "the address is the sandbox's"
    NAME_CLAIMED = 6, "the name is the sandbox's, there is no record yet"
    RECORD_PENDING = 7, "a record is written under a temporary name"
    RECORD_WRITTEN = 8, "the record is on disk: creating"
    APP_STAGED = 9, "the application's files are copied"
    IMAGE_READY = 10, "the image is built, the engine and its network are ready"
    NAMESPACES_MADE = 11, "a child waits in fresh namespaces"
    CGROUP_MADE = 12, "the control group is there, with its limits"
    ROOT_MOUNTED = 13, "the root is mounted below the sandbox's directory"
    ADDRESS_SERVED = 14, "the address is on the host's bridge"
    LINK_PLUGGED = 15, "the link is on the bridge"
    CHILD_READY = 16, "the child waits to become the workload"
    FILES_WRITTEN = 17, "keys, initramfs and logs of the machine are in the directory"
    CONTAINER_CREATED = 18, "the container is there and does not run"
    DOMAIN_DEFINED = 19, "QEMU runs, its guest does not"
    CREATED = 20, "everything is made, and the record says by whom"
    BOOTED = 21, "the guest's init has spoken"
    STARTED = 22, "the workload runs"
    ISOLATED = 23, "the sandbox's port is closed to its siblings"
    PUBLISHED = 24, "ports of the host lead inside"
    REPLIED = 25, "a correct reply was served"
    LIMITS_READ = 26, "the limits were read back"
    SAVED_RUNNING = 27, "the record is on disk: running"

    ENDING = 40, "a command is about to end the workload"
    ENDED = 41, "the workload has ended, the record does not say so"
    SAVED_EXITED = 42, "the record is on disk: exited"
    REMOVING = 43, "a command is about to remove the sandbox"
    PROCESSES_KILLED = 44, "the last process is gone, its control group is not"
    CGROUP_REMOVED = 45, "the control group is gone"
    ROOT_UNMOUNTED = 46, "nothing is mounted below the directory any more"
    CONTAINER_REMOVED = 47, "the container is gone"
    DOMAIN_REMOVED = 48, "QEMU is gone, the machine's files are not"
    UNPUBLISHED = 49, "ports of the host lead nowhere any more"
    RESOURCES_REMOVED = 50, "what the driver made is gone"
    DIRECTORY_MOVED = 51, "the directory has lost its name: for every other command the sandbox is gone"
    CLAIM_DROPPED = 52, "a name, address or port is free again"
    STATE_REMOVED = 53, "the directory is gone"
    SHARED_REMOVED = 54, "what a level keeps for all its sandboxes is gone"
    LAB_REMOVED = 55, "bridge, generator and rules of the lab are gone"


listener: Callable[[Failpoint], None] | None = None
"""Told of every failpoint that this process passes; set by tests alone."""


def reached(failpoint: Failpoint) -> None:
    """Say that a failpoint is passed."""
    if listener is not None:
        listener(failpoint)
