"""Each wall of the vm level: it holds, the same attempt succeeds where the wall is not, and without it the test fails.

A wall is taken away in the test alone: in the domain's XML before libvirt has it, or in the guest by its own root, who
comes in by `Guest.run`, which no wall of the sandbox is around. Two machines boot for all of it.
"""

from __future__ import annotations

import os
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from sandbox.errors import EngineError
from sandbox.isolation import keeper
from sandbox.isolation.base import ExecResult
from sandbox.isolation.in_force import Capabilities, Domain, Process
from sandbox.isolation.vm import config
from sandbox.isolation.vm import xml as vm_xml
from sandbox.isolation.vm.guest import Guest
from sandbox.isolation.vm.sandbox import CLIENT_KEY, CONSOLE_LOG, Handle, VmSandbox
from sandbox.spec import MIB
from tests import leaks
from tests.integration.machines import SPEC, created, pid_of, started

pytestmark = pytest.mark.level("vm")

HOME = "/usr/lib/sandbox-vm"
MOUNT, UMOUNT = f"{HOME}/busybox mount", f"{HOME}/busybox umount"
DEVICES = {
    "channel unix", "console unix", "controller pci", "controller virtio-serial", "disk file", "input keyboard",
    "input mouse", "interface bridge", "serial unix",
}  # fmt: skip
"""All that a machine has. The PC's ports for keyboard and mouse cannot be left out; nothing is connected to them."""
CLASSES = {"0x0100", "0x0101", "0x0200", "0x0600", "0x0601", "0x0680", "0x0780"}
"""PCI classes seen inside: disk, the PC's IDE without a drive, network, bridges, virtio ports (PCI Code and ID
Assignment)."""
PIDS = 24
MEMORY = 160 * MIB
EXTRA: dict[str, str] = {
    "graphics": "<graphics type='vnc'><listen type='none'/></graphics>",
    "video": "<video><model type='vga'/></video>",
    "usb": "<controller type='usb' model='qemu-xhci'/>",
    "sound": "<sound model='ac97'/>",
    "share": "<filesystem type='mount' accessmode='mapped'><source dir='{share}'/><target dir='share'/></filesystem>",
}
"""Devices that no machine of ours has."""
OTHER_CLASSES = {"video": "0x0300", "usb": "0x0c03", "sound": "0x0401", "share": "0x0002"}


@contextmanager
def domains_changed(change: Callable[[ET.Element], None]) -> Iterator[None]:
    """Have every domain's XML changed before libvirt is told."""
    real = vm_xml.domain_xml

    def changed(plan: vm_xml.DomainPlan) -> str:
        root = ET.fromstring(real(plan))
        change(root)
        return ET.tostring(root, encoding="unicode")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vm_xml, "domain_xml", changed)
        yield


def with_devices(share: Path, *names: str) -> Callable[[ET.Element], None]:
    """Add devices; a controller for USB takes the place of the statement that there is none."""

    def change(root: ET.Element) -> None:
        devices = root.find("devices")
        assert devices is not None
        for name in names:
            if name == "usb":
                devices.remove(devices.find("controller[@type='usb']"))  # type: ignore[arg-type]
            devices.append(ET.fromstring(EXTRA[name].format(share=share)))

    return change


@pytest.fixture(scope="module")
def share() -> Iterator[Path]:
    """A directory of the host that QEMU's user can read, all the way."""
    path = Path(tempfile.mkdtemp(prefix="sandbox-test-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture(scope="module")
def counted() -> Iterator[None]:
    before = leaks.snapshot()
    yield
    left = leaks.leaked(before)
    assert not left, f"left behind: {left}"


@pytest.fixture(scope="module")
def machine(counted: None) -> Iterator[VmSandbox]:
    """A machine with all its walls; tests that take one away put it back."""
    with started(replace(SPEC, memory=MEMORY, cpus=1.5, pids_limit=PIDS)) as sandbox:
        yield sandbox


@pytest.fixture(scope="module")
def open_machine(counted: None, share: Path) -> Iterator[VmSandbox]:
    """A machine with every device that ours do not have, and a disk of its own that it may write to."""
    disk = share / "disk.raw"

    def change(root: ET.Element) -> None:
        with_devices(share, *EXTRA)(root)
        element = root.find("devices/disk")
        assert element is not None
        for name in ("readonly", "shareable"):
            element.remove(element.find(name))  # type: ignore[arg-type]
        source = element.find("source")
        assert source is not None
        shutil.copyfile(source.attrib["file"], disk)
        os.chmod(disk, 0o666)
        source.set("file", str(disk))

    with domains_changed(change), started(replace(SPEC, memory=MEMORY)) as sandbox:
        yield sandbox


def as_root(sandbox: VmSandbox, script: str) -> tuple[int, str]:
    """Run a script as the guest's root, with no wall around it."""
    done = sandbox._inside().run(script, 60)
    return done.exit_code, (done.stdout + done.stderr).decode("utf-8", "replace")


@contextmanager
def without(sandbox: VmSandbox, take_away: str, put_back: str) -> Iterator[None]:
    """A wall of the guest is not there for the time of a block."""
    assert as_root(sandbox, take_away) == (0, "")
    try:
        yield
    finally:
        assert as_root(sandbox, put_back) == (0, "")


@contextmanager
def without_words(sandbox: VmSandbox, *words: str) -> Iterator[None]:
    """The guest's script `common` lacks words of its own for the time of a block."""
    edits = " ".join(f"-e 's/{word}//'" for word in words)
    file = f"{HOME}/common"
    take = f"sed {edits} {file} >/run/common && ! cmp -s {file} /run/common && {MOUNT} --bind /run/common {file}"
    with without(sandbox, take, f"{UMOUNT} {file} && rm /run/common"):
        yield


def inside(sandbox: VmSandbox, script: str, *, root: bool = False) -> ExecResult:
    return sandbox.exec(["/bin/sh", "-c", script], root=root, timeout=60)


# --- the machine from outside: nothing boots ---------------------------------------------------------------------


def qemu(sandbox: VmSandbox) -> Process:
    found = sandbox.inspection().process
    assert found is not None
    return found


def domain_of(sandbox: VmSandbox) -> Domain:
    found = sandbox.inspection().domain
    assert found is not None
    return found


def test_qemu_is_not_root(machine: VmSandbox) -> None:
    process = qemu(machine)
    assert process.user.uid not in (0, None)
    assert process.user.gid not in (0, None)
    assert process.capabilities.effective == []
    ours = Path("/proc/self/status").read_text()
    assert "Uid:\t0" in ours, "the control: who asked for the machine is root"

    def as_root_user(root: ET.Element) -> None:
        label = root.find("seclabel/label")
        assert label is not None
        label.text = "+0:+0"

    with domains_changed(as_root_user), pytest.raises(EngineError, match="QEMU runs as root"), created(SPEC):
        pass


def test_qemu_is_behind_its_seccomp_filter(machine: VmSandbox, share: Path) -> None:
    found = qemu(machine)
    assert found.seccomp.mode == "filter"
    options = (domain_of(machine).sandbox_option or "").split(",")
    assert options[0] == "on"
    assert {f"{name}=deny" for name in ("obsolete", "elevateprivileges", "spawn", "resourcecontrol")} <= set(options)
    assert "Seccomp:\t0" in Path("/proc/self/status").read_text(), "the control: we are behind none"

    # libvirt always gives QEMU the option, so a program in QEMU's place takes it away again.
    program = share / "qemu"
    words = 'n=$#; while [ $n -gt 0 ]; do [ "$1" = -sandbox ] && shift && n=$((n-1)) || set -- "$@" "$1"; shift; '
    program.write_text(f'#!/bin/sh\n{words}n=$((n-1)); done\nexec {found.program} "$@"\n')
    program.chmod(0o755)

    def off(root: ET.Element) -> None:
        devices = root.find("devices")
        assert devices is not None
        ET.SubElement(devices, "emulator").text = str(program)

    # What libvirt keeps of a program that it has looked at: a file named by the hash of its path.
    kept = Path("/var/cache/libvirt/qemu/capabilities") / f"{sha256(str(program).encode()).hexdigest()}.xml"
    try:
        with domains_changed(off), pytest.raises(EngineError, match="without its seccomp filter"), created(SPEC):
            pass
    finally:
        assert kept.exists()
        kept.unlink()


def test_qemu_has_a_mount_namespace_of_its_own(machine: VmSandbox) -> None:
    """libvirt's own wall: QEMU sees a /dev with what its machine needs."""
    assert qemu(machine).namespaces.mnt.owner == "sandbox"
    seen = set(os.listdir(f"/proc/{pid_of(machine)}/root/dev"))
    ours = set(os.listdir("/dev"))
    assert {"kmsg", "mem"} & ours, "the control"
    assert not {"kmsg", "mem"} & seen


def test_it_has_a_serial_port_two_for_output_a_disk_a_card_and_no_more(machine: VmSandbox) -> None:
    assert set(domain_of(machine).devices) == DEVICES
    command = Path(f"/proc/{pid_of(machine)}/cmdline").read_bytes().decode().split("\0")
    assert not {"-vnc", "-spice", "-fsdev", "-virtfs"} & set(command)
    assert "none" in [command[n + 1].partition(",")[0] for n, word in enumerate(command) if word == "-display"]
    assert not [word for word in command if "usb" in word and "usb=off" not in word]


@pytest.mark.parametrize("name", sorted(EXTRA))
def test_each_other_device_would_be_noticed(name: str, share: Path) -> None:
    with domains_changed(with_devices(share, name)), created(SPEC) as sandbox:
        assert set(domain_of(sandbox).devices) > DEVICES


def classes(sandbox: VmSandbox) -> set[str]:
    return {line[:6] for line in inside(sandbox, "cat /sys/bus/pci/devices/*/class").stdout.decode().split()}


def test_seen_from_inside_there_is_no_other_device(machine: VmSandbox, open_machine: VmSandbox) -> None:
    assert classes(machine) <= CLASSES
    found = classes(open_machine)
    assert {name for name, number in OTHER_CLASSES.items() if number in found} == set(OTHER_CLASSES), found


def test_the_disk_is_the_shared_base_and_cannot_be_written_to(machine: VmSandbox, open_machine: VmSandbox) -> None:
    """Not even by the guest's root: the machine itself has it read-only, and QEMU's user cannot write to the file."""
    attempt = "dd if=/dev/vda of=/dev/vda bs=512 count=1 conv=notrunc,fsync"
    (disk,) = domain_of(machine).disks
    assert (disk.read_only, disk.format) == (True, "raw")
    before = os.stat(str(disk.file))
    code, words = as_root(machine, attempt)
    assert (code, "not permitted" in words) == (1, True), words
    # Its filesystem is of a kind that has no way to write: remounted, it stays read-only.
    code, words = as_root(machine, f"{MOUNT} -o remount,rw /; echo x >/written")
    assert (code != 0, "Read-only" in words) == (True, True), words
    assert os.stat(str(disk.file)).st_mtime_ns == before.st_mtime_ns
    assert before.st_uid == 0
    assert not before.st_mode & 0o022
    # The same with a disk that is not read-only.
    assert as_root(open_machine, attempt)[0] == 0


# --- who may come in ---------------------------------------------------------------------------------------------


def handle_of(sandbox: VmSandbox) -> Handle:
    assert sandbox.handle is not None
    return sandbox.handle


def guest_of(sandbox: VmSandbox, *, host_public: str | None = None, key: Path | None = None) -> Guest:
    record = sandbox.record
    return Guest(
        record.address,
        host_public or handle_of(sandbox).host_key,
        key or record.directory / CLIENT_KEY,
        lambda: sandbox.state().running,
    )


def test_a_guest_with_another_host_key_is_not_talked_to(machine: VmSandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    import paramiko

    wrong = config.make_keys().host_public
    with pytest.raises(EngineError, match="does not answer over SSH"):
        guest_of(machine, host_public=wrong).run("true", 30)
    control = guest_of(machine)
    assert control.run("true", 30).exit_code == 0
    control.close()
    # A client that takes whichever key it is shown.
    monkeypatch.setattr(paramiko.SSHClient, "get_host_keys", lambda _: paramiko.HostKeys())
    monkeypatch.setattr(paramiko, "RejectPolicy", paramiko.AutoAddPolicy)
    trusting = guest_of(machine, host_public=wrong)
    assert trusting.run("true", 30).exit_code == 0
    trusting.close()


def test_the_key_of_one_machine_opens_no_other(machine: VmSandbox, open_machine: VmSandbox) -> None:
    other = guest_of(machine, key=open_machine.record.directory / CLIENT_KEY)
    with pytest.raises(EngineError, match="does not answer over SSH"):
        other.run("true", 30)
    assert guest_of(open_machine).run("true", 30).exit_code == 0, "the control: it is a good key"
    assert handle_of(machine).host_key != handle_of(open_machine).host_key
    assert handle_of(machine).nonce != handle_of(open_machine).nonce
    _, line = as_root(open_machine, f"cat {HOME}/etc/authorized_keys")
    file = f"{HOME}/etc/authorized_keys"
    with without(
        machine,
        f"echo '{line.strip()}' >/run/keys && chmod 600 /run/keys && {MOUNT} --bind /run/keys {file}",
        f"{UMOUNT} {file} && rm /run/keys",
    ):
        assert other.run("true", 30).exit_code == 0
        other.close()


def test_no_password_lets_anybody_in(machine: VmSandbox) -> None:
    import paramiko

    with pytest.raises(paramiko.BadAuthenticationType) as caught:
        log_in_without_key(machine, 22)
    assert caught.value.allowed_types == ["publickey"]
    # A server that takes passwords says so.
    with a_second_server(machine, "-r", "23"), pytest.raises(paramiko.BadAuthenticationType) as caught:
        log_in_without_key(machine, 23)
    assert "password" in caught.value.allowed_types


def log_in_without_key(sandbox: VmSandbox, port: int) -> None:
    import paramiko

    with paramiko.Transport((sandbox.record.address, port)) as transport:
        transport.start_client(timeout=30)
        transport.auth_none("root")


@contextmanager
def a_second_server(sandbox: VmSandbox, key_option: str, port: str) -> Iterator[None]:
    """An SSH server of the guest with none of the options that close ways in."""
    server = f"LD_LIBRARY_PATH={HOME}/lib {HOME}/dropbear {key_option} {HOME}/etc/host_key -p {port} -E -P /run/second"
    with without(sandbox, f"{server} 2>/dev/null", "kill $(cat /run/second)"):
        yield


def test_ssh_forwards_no_connection(machine: VmSandbox) -> None:
    import paramiko

    def forward(port: int) -> None:
        key = paramiko.Ed25519Key.from_private_key_file(str(machine.record.directory / CLIENT_KEY))
        with paramiko.Transport((machine.record.address, port)) as transport:
            transport.connect(username="root", pkey=key)
            transport.open_channel("direct-tcpip", ("127.0.0.1", 24), ("127.0.0.1", 1), timeout=30).close()

    listener = f"{HOME}/busybox nc -l -p 24 >/dev/null 2>&1 & echo $! >/run/listener"
    with (
        without(machine, listener, "kill $(cat /run/listener) 2>/dev/null; true"),
        a_second_server(machine, "-r", "23"),
    ):
        with pytest.raises(paramiko.ChannelException):
            forward(22)
        forward(23)


def test_the_files_of_a_machine_are_for_nobody_else(machine: VmSandbox) -> None:
    files = [machine.record.directory / name for name in (CLIENT_KEY, "initrd", CONSOLE_LOG, keeper.LOG)]
    assert [oct(path.stat().st_mode & 0o777) for path in files] == ["0o600"] * 4
    assert files[0].stat().st_uid == 0, "QEMU reads the initramfs; the key that opens the guest it does not"
    assert files[1].stat().st_uid == qemu(machine).user.uid


# --- the workload in the guest -----------------------------------------------------------------------------------


def test_it_has_the_processors_and_the_memory_that_were_given(machine: VmSandbox) -> None:
    assert inside(machine, "nproc --all").stdout.strip() == b"2", "1.5 processors are two, with a quota on both"
    ranges = as_root(machine, "grep 'System RAM' /proc/iomem")[1].split("\n")
    bounds = [line.strip().split(" : ")[0].split("-") for line in ranges if line]
    total = sum(int(end, 16) - int(begin, 16) + 1 for begin, end in bounds)
    assert MEMORY - MIB < total <= MEMORY, "all but what the BIOS keeps"
    found = int(inside(machine, "head -n 1 /proc/meminfo").stdout.split()[1]) * 1024
    # The kernel keeps its own code and data, 36 MiB, and a 64th for the table of pages.
    assert MEMORY - 36 * MIB - MEMORY // 64 - 2 * MIB < found < MEMORY - 20 * MIB
    assert inside(machine, "wc -l </proc/swaps").stdout.strip() == b"1"


FORKS = (
    "import os, signal, time\nmade = []\ntry:\n while len(made) < 60:\n  made.append(os.fork())\n"
    "  if not made[-1]: time.sleep(60); os._exit(0)\nexcept BlockingIOError: pass\nprint(len(made))\n"
    "for pid in made: os.kill(pid, signal.SIGKILL); os.waitpid(pid, 0)"
)
"""Forks until it may not, and says how often; none of them is left."""


def test_processes_are_limited(machine: VmSandbox) -> None:
    limit = "/sys/fs/cgroup/sandbox/pids.max"
    attempt = ["python3", "-I", "-S", "-c", FORKS]
    assert as_root(machine, shlex.join(attempt)) == (0, "60\n"), "the control: outside the limit, all succeed"
    assert PIDS - 9 < int(machine.exec(attempt, timeout=60).stdout) < PIDS
    with without(machine, f"echo max >{limit}", f"echo {PIDS} >{limit}"):
        assert machine.exec(attempt, timeout=60).stdout == b"60\n"


def test_a_full_sandbox_takes_no_further_command(machine: VmSandbox) -> None:
    fill = "import os,time\ntry:\n while os.fork(): pass\nexcept OSError: pass\ntime.sleep(60)"
    null = os.open(os.devnull, os.O_RDWR)
    attached = machine.attach(["python3", "-I", "-S", "-c", fill], stdin=None, stdout=null, stderr=null)
    try:
        full = f"until [ $(cat /sys/fs/cgroup/sandbox/pids.current) = {PIDS} ]; do sleep 0.1; done"
        assert as_root(machine, full) == (0, "")
        with pytest.raises(EngineError, match="has reached its limit on processes"):
            machine.exec(["true"], timeout=60)
        assert machine.stats().pids == PIDS
    finally:
        attached.close()
        os.close(null)
    assert machine.exec(["true"], timeout=60).exit_code == 0


def test_commands_have_no_capability_even_as_root(machine: VmSandbox) -> None:
    attempt = f"{MOUNT} -t tmpfs none /mnt && {UMOUNT} /mnt"
    assert as_root(machine, attempt)[0] == 0, "the control"
    assert inside(machine, attempt, root=True).exit_code != 0
    assert inside(machine, attempt).exit_code != 0
    assert b"CapBnd:\t" + b"0" * 16 in inside(machine, "grep CapBnd /proc/self/status").stdout
    with without_words(machine, "--bounding-set=-all"):
        assert inside(machine, attempt, root=True).exit_code == 0


SUID = "cp /usr/bin/id /dev/shm/id && chmod 4755 /dev/shm/id"


def test_no_new_privileges(machine: VmSandbox) -> None:
    """Of its own, where a file may change who runs it."""
    allowed = f"{MOUNT} -o remount,suid,exec /dev/shm && {SUID}"
    with without(machine, allowed, f"rm /dev/shm/id && {MOUNT} -o remount,nosuid,noexec /dev/shm"):
        attempt = "/dev/shm/id -u"
        control = as_root(machine, f"setpriv --reuid=10001 --clear-groups {attempt}")
        assert control == (0, "0\n"), "the control"
        assert inside(machine, attempt).stdout == b"10001\n"
        with without_words(machine, "--no-new-privs"):
            assert inside(machine, attempt).stdout == b"0\n"


@pytest.mark.parametrize("place", ["/tmp", "/run"])
def test_what_can_be_written_makes_nobody_root(machine: VmSandbox, place: str) -> None:
    """Nor opens a device: nosuid, nodev. As a user who could, for no_new_privs would hold in any case."""
    attempt = f"setpriv --reuid=10001 --clear-groups {place}/id -u; head -c 1 {place}/zero 2>/dev/null | wc -c"
    make = f"cp /usr/bin/id {place}/id && chmod 4755 {place}/id && mknod -m 666 {place}/zero c 1 5"
    with without(machine, make, f"rm {place}/id {place}/zero"):
        assert as_root(machine, attempt)[1].split() == ["10001", "0"]
        opened = f"{MOUNT} -o remount,{{}} {place}"
        with without(machine, opened.format("suid,dev"), opened.format("nosuid,nodev")):
            assert as_root(machine, attempt)[1].split() == ["0", "1"]


def test_the_root_is_read_only(machine: VmSandbox, open_machine: VmSandbox) -> None:
    attempt = "echo x >/etc/new && rm /etc/new"
    result = inside(machine, attempt, root=True)
    assert b"Read-only" in result.stderr
    assert inside(machine, "echo x >/tmp/new && rm /tmp/new").exit_code == 0, "the control"
    with without(open_machine, f"{MOUNT} -t tmpfs tmpfs /etc", f"{UMOUNT} /etc"):
        assert inside(open_machine, attempt, root=True).exit_code == 0


def test_the_machines_secrets_are_hidden(machine: VmSandbox) -> None:
    for name in ("settings", "host_key", "authorized_keys"):
        attempt = f"cat {HOME}/etc/{name} >/dev/null"
        assert as_root(machine, attempt)[0] == 0, "the control"
        assert inside(machine, attempt).exit_code != 0
    # The directory keeps them, each file keeps itself.
    remount = f"{MOUNT} -o remount,bind,{{}} {HOME}"
    with without(
        machine,
        f"{remount.format('rw')} && chmod 755 {HOME}/etc",
        f"chmod 700 {HOME}/etc && {remount.format('ro,nosuid,nodev')}",
    ):
        assert inside(machine, f"cat {HOME}/etc/settings").exit_code != 0
        with without(machine, f"chmod 644 {HOME}/etc/settings", f"chmod 600 {HOME}/etc/settings"):
            assert inside(machine, f"cat {HOME}/etc/settings").exit_code == 0


def test_its_scripts_cannot_be_changed_even_by_a_root_without_capabilities(machine: VmSandbox) -> None:
    attempt = f"echo >>{HOME}/enter"
    assert b"Read-only" in inside(machine, attempt, root=True).stderr
    remount = f"{MOUNT} -o remount,bind,{{}} {HOME}"
    with without(machine, remount.format("rw"), remount.format("ro,nosuid,nodev")):
        assert inside(machine, attempt, root=True).exit_code == 0


@pytest.mark.parametrize("device", ["/dev/ttyS0", "/dev/vda", "/dev/console"])
def test_consoles_and_disk_are_closed(machine: VmSandbox, device: str) -> None:
    attempt = f"exec 3<{device}"
    assert as_root(machine, attempt)[0] == 0, "the control"
    assert inside(machine, attempt).exit_code != 0
    _, mode = as_root(machine, f"stat -c %a {device}")
    with without(machine, f"chmod 666 {device}", f"chmod {mode.strip()} {device}"):
        assert inside(machine, attempt).exit_code == 0


@pytest.mark.parametrize("number", [1, 2])
def test_the_ports_of_the_output_are_closed(machine: VmSandbox, number: int) -> None:
    """By their mode; and the guest's init holds them, so that not even its root can open one a second time."""
    attempt = f"exec 3<>$(echo /dev/vport*p{number})"
    result = inside(machine, f"ls /dev/vport*p{number} && {attempt}")
    assert result.stdout
    assert result.exit_code != 0
    assert b"Permission denied" in result.stderr
    assert "busy" in as_root(machine, attempt)[1]


def test_the_kernels_log_is_hidden(machine: VmSandbox) -> None:
    """It has the nonce in it, with which the workload could speak for the guest's init."""
    attempt = f"timeout 5 {HOME}/busybox dmesg | grep -q '@[0-9a-f]* start'"
    assert as_root(machine, attempt)[0] == 0, "the control"
    assert inside(machine, attempt).exit_code != 0
    switch = "/proc/sys/kernel/dmesg_restrict"
    with without(machine, f"echo 0 >{switch}", f"echo 1 >{switch}"):
        assert inside(machine, attempt).exit_code == 0


def test_processes_of_others_are_not_seen(machine: VmSandbox) -> None:
    attempt = "cat /proc/1/cmdline >/dev/null"
    assert as_root(machine, attempt)[0] == 0, "the control"
    assert inside(machine, attempt).exit_code != 0
    remount = f"{MOUNT} -o remount,hidepid={{}} /proc"
    with without(machine, remount.format(0), remount.format(2)):
        assert inside(machine, attempt).exit_code == 0


def test_what_is_in_force_is_said_as_the_kernels_have_it(machine: VmSandbox, open_machine: VmSandbox) -> None:
    found = machine.inspection()
    assert (found.user.uid, found.user.gid, found.user.groups) == (10001, 10001, [])
    assert found.user.no_new_privileges is True
    assert found.capabilities == Capabilities([], [], [], [], [])
    assert (found.kernel.processors, found.kernel.swap, found.kernel.shared) == (2, 0, False)
    assert found.limits.cpus == pytest.approx(1.5)
    options = {mount.target: mount.options for mount in found.mounts or ()}
    writable = {target for target, words in options.items() if "rw" in words}
    assert writable == {"/dev", "/proc", "/sys", "/sys/fs/cgroup", "/tmp", "/run", "/dev/shm", "/dev/pts"}
    assert all("nosuid" in words for words in options.values())
    assert domain_of(machine).accelerator == machine.record.accelerator
    assert not domain_of(open_machine).disks[0].read_only
