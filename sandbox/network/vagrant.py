"""The network of Vagrant machines, and those that `sandbox compare` made.

`python -m sandbox.network.vagrant up` or `down` makes or removes it.
vagrant-libvirt would make the network by itself, on a bridge of whatever name is free, and nothing would keep a machine

from what the host serves. So the Vagrantfile calls this first: rules for a bridge of a fixed name, then a network on
that bridge, which vagrant-libvirt finds by its name and takes. A machine gets an address (DHCP) and may answer the
host; it reaches neither the host's services, nor another machine, nor anything beyond.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from sandbox.errors import EXIT_ERROR, BusyError, EngineError, SandboxError, UnavailableError
from sandbox.host.libvirt import URI
from sandbox.interrupts import deferred
from sandbox.kernel import nftables
from sandbox.state import paths
from sandbox.state.store import Store, named_lock

NETWORK = "sandbox-vagrant"
BRIDGE = "sbxvagrant"
HOST_ADDRESS = "198.19.121.1"
"""As the Vagrantfile's management_network_address has it, of the range that the lab network is of (RFC 2544)."""
TABLE = "sandbox_vagrant"
LOCK = "vagrant"
COMPARE_LOCK = "vagrant-compare"
"""Held by a comparison for as long as it has a machine: without a holder, that is debris."""
POOL = "default"
"""libvirt's storage pool, where vagrant-libvirt keeps disks."""
_TIMEOUT = 60.0
_DESTROY_TIMEOUT = 120.0

_RULES = f"""
add table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  chain input {{
    type filter hook input priority -10; policy accept;
    iifname != "{BRIDGE}" accept
    ct state established,related accept
    ip daddr {{ {HOST_ADDRESS}, 255.255.255.255 }} udp sport 68 udp dport 67 accept
    drop
  }}
  chain forward {{
    type filter hook forward priority -10; policy accept;
    iifname "{BRIDGE}" oifname "{BRIDGE}" accept
    iifname "{BRIDGE}" drop
    oifname "{BRIDGE}" drop
  }}
}}
"""

_XML = f"""
<network>
  <name>{NETWORK}</name>
  <bridge name="{BRIDGE}" stp="off" delay="0"/>
  <dns enable="no"/>
  <port isolated="yes"/>
  <ip address="{HOST_ADDRESS}" netmask="255.255.255.0">
    <dhcp><range start="198.19.121.2" end="198.19.121.254"/></dhcp>
  </ip>
</network>
"""


def ensure() -> None:
    """Make what is missing of the network, the rules first: no moment in which a machine is on an open bridge.

    Raises:
        BusyError: machines use a network of that name that has another bridge.
        EngineError: libvirt or nft refuses; what was made goes again where no machine uses it.
    """
    Store().ensure()
    with named_lock(LOCK):
        try:
            _load_rules()
            if NETWORK in _networks("--all") and f"bridge name='{BRIDGE}'" not in virsh("net-dumpxml", NETWORK):
                if _users():
                    raise BusyError(f"the network {NETWORK} is not of this version", "vagrant destroy")
                _remove_network()
            if NETWORK not in _networks("--all"):
                virsh("net-define", "/dev/stdin", text=_XML)
            if NETWORK not in _networks():
                virsh("net-start", NETWORK)
        except SandboxError:
            _release()
            raise


def _load_rules() -> None:
    try:
        nftables.load(_RULES)
    except OSError as error:
        raise EngineError(f"the rules of {BRIDGE} cannot be loaded: {error.strerror or error}") from error


def release(*, dry_run: bool = False) -> list[str]:
    """Remove the network where no machine, running or not, is to use it, and the rules with the bridge.

    Returns:
        A line for each thing removed.

    Raises:
        EngineError: libvirt or nft refuses.
    """
    with named_lock(LOCK):
        return _release(dry_run=dry_run)


def _release(*, dry_run: bool = False) -> list[str]:
    removed = []
    try:
        unused = NETWORK in _networks("--all") and not _users()
    except EngineError:
        unused = False  # libvirt is away: what it has stays, and the rules with it
    if unused:
        removed.append(f"libvirt network {NETWORK}")
        if not dry_run:
            _remove_network()
    try:
        if nftables.table_exists("inet", TABLE) and (unused or not os.path.exists(f"/sys/class/net/{BRIDGE}")):
            removed.append(f"nftables table inet {TABLE}")
            if not dry_run:
                nftables.load(f"delete table inet {TABLE}\n")
    except OSError as error:
        raise EngineError(f"the rules of {BRIDGE} cannot be removed: {error.strerror or error}") from error
    return removed


def virsh(*words: str, text: str | None = None) -> str:
    """The words of virsh(1), as the administrator's libvirt answers them.

    Raises:
        EngineError: it refuses, does not answer, or is not installed.
    """
    try:
        done = subprocess.run(
            ["virsh", "-q", "-c", URI, *words],
            input=text or "",
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIMEOUT,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise EngineError(f"virsh {words[0]}: {error}", "sandbox doctor") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise EngineError(f"virsh {words[0]}: {said[-1].removeprefix('error: ')}", "sandbox doctor")
    return done.stdout


def _networks(*options: str) -> list[str]:
    return virsh("net-list", "--name", *options).split()


def _users() -> list[str]:
    """Domains with a link on the network, or that will have one when they run."""
    found = []
    for domain in virsh("list", "--all", "--name").split():
        with suppress(EngineError):  # it went in between
            if NETWORK in virsh("domiflist", domain).split():
                found.append(domain)
    return found


def _remove_network() -> None:
    if NETWORK in _networks():
        virsh("net-destroy", NETWORK)
    virsh("net-undefine", NETWORK)


def domain_name(folder: Path) -> str:
    """What vagrant-libvirt calls the domain of a folder's Vagrantfile."""
    return f"{folder.name}_default"


def environment(folder: Path, **more: str) -> dict[str, str]:
    """What Vagrant is called with, for a machine that has nothing to do with the user's own."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VAGRANT_")}
    return {**kept, "VAGRANT_HOME": str(folder / "home"), "SANDBOX_VAGRANT_DRIVER": "qemu", **more}


def clear(*, dry_run: bool = False) -> list[str]:
    """Destroy the machine of a comparison, and its folder and copy of the box; the caller holds COMPARE_LOCK.

    Returns:
        A line for each thing removed.

    Raises:
        EngineError: something stays, the folder among it, so that the next try finds it.
    """
    folder = paths.vagrant_dir()
    if not folder.exists():
        return []
    if not dry_run:
        with deferred():
            destroy(folder)
            _remove_images(folder)
            shutil.rmtree(folder)
    return [f"Vagrant machine of a comparison, {folder}"]


def destroy(folder: Path) -> None:
    """Destroy the machine of a folder; idempotent.

    Raises:
        EngineError: it stays.
    """
    failure = ""
    try:
        done = subprocess.run(
            ["vagrant", "destroy", "-f"],
            cwd=folder,
            env=environment(folder),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=_DESTROY_TIMEOUT,
            start_new_session=True,
        )
        failure = "" if done.returncode == 0 else (done.stderr or done.stdout).strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    # Vagrant knows of a machine what it has come to write down, and nothing of one that it was killed over.
    domain = domain_name(folder)
    if domain in virsh("list", "--all", "--name").split():
        if domain in virsh("list", "--name").split():
            virsh("destroy", domain)
        virsh("undefine", domain, "--remove-all-storage")
        release()
    elif failure:
        raise EngineError(f"vagrant destroy: {failure.splitlines()[-1]}", "sandbox prune tries again")


def _remove_images(folder: Path) -> None:
    """Remove what vagrant-libvirt leaves: a copy of the box's disk in libvirt's pool, named by when it was unpacked."""
    for image in folder.glob("home/boxes/*/0/libvirt/box.img"):
        name = f"{image.parents[2].name}_vagrant_box_image_0_{int(image.stat().st_mtime)}_box.img"
        with suppress(EngineError):  # there is no such pool, or not yet such a volume
            if name in virsh("vol-list", "--pool", POOL).split():
                virsh("vol-delete", "--pool", POOL, name)


def prune(*, dry_run: bool) -> list[str]:
    """Remove the machine of a comparison that was killed, and the network where nobody uses it.

    Returns:
        A line for each thing removed.

    Raises:
        EngineError: something stays.
    """
    removed = []
    with suppress(BusyError), named_lock(COMPARE_LOCK, wait=False):
        removed += clear(dry_run=dry_run)
    return removed + release(dry_run=dry_run)


def main(words: list[str]) -> int:
    """Make the network ("up"), or remove it where nobody uses it ("down")."""
    if words not in (["up"], ["down"]):
        print("usage: python -m sandbox.network.vagrant up|down", file=sys.stderr)
        return EXIT_ERROR
    try:
        if os.geteuid() != 0:
            raise UnavailableError("rules for a network need root", "run it with sudo")
        if words == ["up"]:
            ensure()
        else:
            release()
    except SandboxError as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
