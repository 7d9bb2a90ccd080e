"""Check for Vagrant's libvirt plugin, by the files that register it: running Vagrant takes two seconds."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Iterator
from pathlib import Path

from sandbox.host.distribution import remedy
from sandbox.host.finding import Finding
from sandbox.host.programs import which

PLUGIN = "vagrant-libvirt"
SYSTEM_PLUGINS = Path("/usr/share/vagrant-plugins/plugins.d")
"""The directory in which packages of the distribution register plugins for the distribution's Vagrant."""


def plugin() -> Finding:
    """Check that Vagrant has the plugin, from the distribution or by `vagrant plugin install`."""
    name = "vagrant.libvirt"
    for path in _registries():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and PLUGIN in found.get("installed", found):
            return Finding(name, True, str(path))
    reason = f"Vagrant's plugin {PLUGIN} is not installed"
    if from_hashicorp():
        return Finding(name, False, reason, f"vagrant plugin install {PLUGIN}")
    return Finding(name, False, reason, remedy(name))


def from_hashicorp() -> bool:
    """Return whether Vagrant is HashiCorp's package, which is in /opt and ignores the distribution's plugins."""
    program = which("vagrant")
    return program is not None and Path(program).resolve().is_relative_to("/opt/vagrant")


def _registries() -> Iterator[Path]:
    if not from_hashicorp():
        yield SYSTEM_PLUGINS / f"{PLUGIN}.json"
    if home := os.environ.get("VAGRANT_HOME"):
        yield Path(home) / "plugins.json"
        return
    users = [os.geteuid()]
    if (caller := os.environ.get("SUDO_UID", "")).isdigit():  # `vagrant up` runs as the caller of sudo
        users.append(int(caller))
    for user in users:
        try:
            yield Path(pwd.getpwuid(user).pw_dir) / ".vagrant.d" / "plugins.json"
        except KeyError:
            continue
