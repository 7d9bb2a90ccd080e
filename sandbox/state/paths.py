"""Where things are kept on disk. Every file name is a constant here, and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

STATE_ENV = "SANDBOX_STATE_DIR"
DEFAULT_STATE = "/var/lib/sandbox"


def state_dir() -> Path:
    """The root of all state: $SANDBOX_STATE_DIR, else /var/lib/sandbox."""
    return Path(os.environ.get(STATE_ENV) or DEFAULT_STATE)


def sandboxes_dir() -> Path:
    """One directory per sandbox, named by its id."""
    return state_dir() / "sandboxes"


def names_dir() -> Path:
    """One file per name in use; its content is the id."""
    return state_dir() / "names"


def addresses_dir() -> Path:
    """One file per lab address in use, named by the address; its content is the id."""
    return state_dir() / "addresses"


def ports_dir() -> Path:
    """One file per published port of the host, named by its number; its content is the id."""
    return state_dir() / "ports"


def images_dir() -> Path:
    """The root filesystem in its forms, content-addressed."""
    return state_dir() / "images"


def vagrant_dir() -> Path:
    """The Vagrant machine of a comparison, for as long as that runs; the domain is called after it."""
    return state_dir() / "sandbox-compare"


def locks_dir() -> Path:
    """Lock files, held with flock(2): the kernel releases them when a holder dies."""
    return state_dir() / "locks"


def host_dir() -> Path:
    """What was learnt about this host and when: verdicts per boot, daemons that we started."""
    return state_dir() / "host"
