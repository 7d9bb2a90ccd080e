"""The paths of all directories of the state; they are defined only here."""

from __future__ import annotations

import os
from pathlib import Path

STATE_ENV = "SANDBOX_STATE_DIR"
DEFAULT_STATE = "/var/lib/sandbox"


def state_dir() -> Path:
    """Return the root of all state: $SANDBOX_STATE_DIR, else /var/lib/sandbox."""
    return Path(os.environ.get(STATE_ENV) or DEFAULT_STATE)


def sandboxes_dir() -> Path:
    """Return the directory that contains one directory per sandbox, named by its id."""
    return state_dir() / "sandboxes"


def names_dir() -> Path:
    """Return the directory that contains one file per name in use, with the id as content."""
    return state_dir() / "names"


def addresses_dir() -> Path:
    """Return the directory that contains one file per lab address in use, with the id as content."""
    return state_dir() / "addresses"


def ports_dir() -> Path:
    """Return the directory that contains one file per published port of the host, with the id as content."""
    return state_dir() / "ports"


def images_dir() -> Path:
    """Return the directory that contains the forms of the root filesystem, named by their digest."""
    return state_dir() / "images"


def vagrant_dir() -> Path:
    """Return the directory of a comparison's Vagrant machine while it runs; the domain is named after it."""
    return state_dir() / "sandbox-compare"


def locks_dir() -> Path:
    """Return the directory of the lock files for flock(2); the kernel drops a lock when its holder dies."""
    return state_dir() / "locks"


def host_dir() -> Path:
    """Return the directory for findings about this host, with the boot to which they apply, and for our daemons."""
    return state_dir() / "host"
