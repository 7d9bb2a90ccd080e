"""The libvirt network of Vagrant machines, and the removal of machines that `sandbox compare` made.

`python -m sandbox.network.vagrant up PID` creates the network, `down` removes it. vagrant-libvirt would create it
itself, on a bridge with any free name, and machines could then reach the host's services. So the Vagrantfile runs this
first: it loads rules for a bridge with a fixed name, then defines a network on that bridge, which vagrant-libvirt finds
by its name and uses. A machine gets an address by DHCP and may reply to the host; it cannot reach the host's services,
other machines, or other networks.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

from sandbox.errors import BusyError, EngineError, SandboxError, SpecError, UnavailableError
from sandbox.host.libvirt import URI
from sandbox.interrupts import deferred
from sandbox.kernel import nftables
from sandbox.state import paths
from sandbox.state.processid import ProcessId
from sandbox.state.store import Store, named_lock

NETWORK = "sandbox-vagrant"
BRIDGE = "sbxvagrant"
HOST_ADDRESS = "198.19.121.1"
"""The first address of the Vagrantfile's management_network_address, in the range of the lab network (RFC 2544)."""
TABLE = "sandbox_vagrant"
LOCK = "vagrant"
_CALLER = "vagrant-up-"
"""The prefix of the files in `host/` that name the processes which are bringing a machine up."""
COMPARE_LOCK = "vagrant-compare"
"""The lock that a comparison holds while it has a machine; a machine without a holder is a leftover."""
POOL = "default"
"""The storage pool of libvirt in which vagrant-libvirt keeps disks."""
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


def ensure(caller: ProcessId | None = None) -> None:
    """Create the missing parts of the network, the rules first, so that no machine is ever on an unprotected bridge.

    Args:
        caller: a process that is about to create a machine on it. Until that process has ended the network stays,
            although no machine uses it yet: otherwise vagrant-libvirt would create one of its own, without rules.

    Raises:
        BusyError: machines use a network of that name with another bridge.
        EngineError: libvirt or nft refuses; what was created is removed again unless a machine uses it.
    """
    Store().ensure()
    with named_lock(LOCK):
        try:
            _load_rules()
            if NETWORK in _networks("--all") and f"bridge name='{BRIDGE}'" not in virsh("net-dumpxml", NETWORK):
                if _users():
                    raise BusyError(f"machines use the network {NETWORK} of another version", "vagrant destroy")
                _remove_network()
            if NETWORK not in _networks("--all"):
                virsh("net-define", "/dev/stdin", text=_XML)
            if NETWORK not in _networks():
                virsh("net-start", NETWORK)
            if caller is not None:
                (paths.host_dir() / f"{_CALLER}{caller.pid}-{caller.start_time}-{caller.boot_id}").touch()
        except SandboxError:
            _release()
            raise


def _load_rules() -> None:
    try:
        nftables.load(_RULES)
    except OSError as error:
        raise EngineError(f"the rules of {BRIDGE} could not be loaded: {error.strerror or error}") from error


def release(*, dry_run: bool = False) -> list[str]:
    """Remove the network and its rules, unless a machine, running or not, uses it.

    Returns:
        One line for each thing removed.

    Raises:
        EngineError: libvirt or nft refuses.
    """
    with named_lock(LOCK):
        return _release(dry_run=dry_run)


def _release(*, dry_run: bool = False) -> list[str]:
    removed = []
    try:
        unused = NETWORK in _networks("--all") and not _awaited() and not _users()
    except EngineError:
        unused = False  # libvirt does not reply: keep the network, and the rules with it
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
        raise EngineError(f"the rules of {BRIDGE} could not be removed: {error.strerror or error}") from error
    return removed


def _awaited() -> bool:
    """Return whether a Vagrant that asked for the network still runs."""
    alive = False
    for path in paths.host_dir().glob(f"{_CALLER}*"):
        pid, start_time, boot = path.name.removeprefix(_CALLER).split("-", 2)
        if ProcessId(int(pid), int(start_time), boot).alive():
            alive = True
        else:
            path.unlink(missing_ok=True)
    return alive


def virsh(*words: str, text: str | None = None) -> str:
    """Run virsh(1) on the system's libvirt, and return its output.

    Raises:
        EngineError: it fails, does not finish in time, or is not installed.
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
    """Return the domains with an interface on the network, running or not."""
    found = []
    for domain in virsh("list", "--all", "--name").split():
        with suppress(EngineError):  # it was removed in between
            if NETWORK in virsh("domiflist", domain).split():
                found.append(domain)
    return found


def _remove_network() -> None:
    """Remove the network, a transient one with its bridge too. Idempotent."""
    for verb, *options in (("net-destroy",), ("net-undefine", "--all")):
        try:
            if NETWORK in _networks(*options):
                virsh(verb, NETWORK)
        except EngineError:
            if NETWORK in _networks(*options):  # else another was quicker
                raise


def domain_name(folder: Path) -> str:
    """Return the name that vagrant-libvirt gives to the domain of a folder's Vagrantfile."""
    return f"{folder.name}_default"


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Return the environment for a run of Vagrant that is independent of the user's own machines."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("VAGRANT_")}
    return {**kept, "VAGRANT_HOME": str(folder / "home"), "SANDBOX_VAGRANT_DRIVER": "qemu", **more}


def clear(*, dry_run: bool = False) -> list[str]:
    """Destroy the machine of a comparison, its folder and its copy of the box. The caller holds COMPARE_LOCK.

    Returns:
        One line for each thing removed.

    Raises:
        EngineError: something could not be removed; the folder is kept, so that the next attempt finds it.
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
    """Destroy the machine of a folder. Idempotent.

    Raises:
        EngineError: it could not be destroyed.
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
    # Vagrant has no record of a machine if it was killed while it created it.
    domain = domain_name(folder)
    if domain in virsh("list", "--all", "--name").split():
        if domain in virsh("list", "--name").split():
            virsh("destroy", domain)
        virsh("undefine", domain, "--remove-all-storage")
        release()
    elif failure:
        raise EngineError(f"vagrant destroy: {failure.splitlines()[-1]}", "sandbox prune tries again")


def _remove_images(folder: Path) -> None:
    """Remove the copy of the box's disk that vagrant-libvirt leaves in libvirt's pool, named after its time."""
    for image in folder.glob("home/boxes/*/0/libvirt/box.img"):
        name = f"{image.parents[2].name}_vagrant_box_image_0_{int(image.stat().st_mtime)}_box.img"
        with suppress(EngineError):  # there is no such pool or volume
            if name in virsh("vol-list", "--pool", POOL).split():
                virsh("vol-delete", "--pool", POOL, name)


def prune(*, dry_run: bool) -> list[str]:
    """Remove the machine of a comparison that was killed, and the network if no machine uses it.

    Returns:
        One line for each thing removed.

    Raises:
        EngineError: something could not be removed.
    """
    removed = []
    with suppress(BusyError), named_lock(COMPARE_LOCK, wait=False):
        removed += clear(dry_run=dry_run)
    return removed + release(dry_run=dry_run)


def main(words: list[str]) -> int:
    """Create the network for a process ("up PID"), or remove it if no machine uses it ("down")."""
    try:
        if os.geteuid() != 0:
            raise UnavailableError("the network of Vagrant machines needs root", "run it with sudo")
        match words:
            case ["up", pid] if pid.isdigit():
                ensure(ProcessId.of(int(pid)))
            case ["down"]:
                release()
            case _:
                raise SpecError("there is no such call", "python -m sandbox.network.vagrant up PID, or down")
    except SandboxError as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
