"""`vagrant up` with the repository's Vagrantfile, on a real libvirtd; nothing of it is left afterwards."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from sandbox import images, results
from sandbox.host import kvm_works
from sandbox.images import Form
from sandbox.images import vagrant as vmbox
from sandbox.kernel import nftables
from sandbox.lifecycle import lab
from sandbox.network import lab as network
from sandbox.network import vagrant
from sandbox.state import paths
from tests import leaks

pytestmark = [pytest.mark.level("vm"), pytest.mark.needs("vagrant"), pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
SANDBOX = str(BIN / "sandbox")
UP_TIMEOUT = 240.0
"""Maximum seconds of a command; `vagrant up` takes about 15, mostly Vagrant's start and that of an emulated machine."""
COMPARED = vagrant.domain_name(paths.vagrant_dir())
TALK = """
import socket, sys
for word in sys.argv[2:]:
    kind, host, port = word.split(",")
    link = socket.socket(socket.AF_INET, socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM)
    link.settimeout(float(sys.argv[1]))
    try:
        link.connect((host, int(port)))
        link.send(b"ping")
        print(word, link.recv(4).decode())
    except OSError as error:
        print(word, type(error).__name__)
"""
"""A program that sends a word to each of some services, and prints the results; for the machine and for the host."""


def domains() -> list[str]:
    return vagrant.virsh("list", "--all", "--name").split()


@pytest.fixture
def storage() -> Iterator[None]:
    """Remove new volumes, and the pool if it is new: Vagrant leaves both."""
    pools, before = vagrant.virsh("pool-list", "--all", "--name").split(), leaks.libvirt_volumes()
    yield
    for name in leaks.libvirt_volumes() - before:
        vagrant.virsh("vol-delete", "--pool", vagrant.POOL, name)
    if vagrant.POOL not in pools and vagrant.POOL in vagrant.virsh("pool-list", "--all", "--name").split():
        vagrant.virsh("pool-destroy", vagrant.POOL)
        vagrant.virsh("pool-undefine", vagrant.POOL)


@pytest.fixture(scope="module")
def found_box() -> vmbox.Box | None:
    """Return the box that existed before this module, if any."""
    return vmbox.find()


@pytest.fixture
def box(found_box: vmbox.Box | None) -> str:
    """Return the box's name. If it is new, it is removed after the last test."""
    images.ensure(Form.VM, lambda _: None)
    done = subprocess.run(
        [sys.executable, "-m", "sandbox.images.vagrant"],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "SUDO_UID"},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    found = vmbox.find()
    assert found is not None
    assert done.stdout == f"{found.file}\n"
    return found.name


@pytest.fixture(scope="module", autouse=True)
def box_goes_again(found_box: vmbox.Box | None) -> Iterator[None]:
    yield
    if found_box is None:
        shutil.rmtree(vmbox.box_dir(), ignore_errors=True)


class Project:
    """Make a folder with the repository's Vagrantfile, so that a machine of the checkout itself is not touched."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        # A link, as the file looks for the environment beside its real path.
        (folder / "Vagrantfile").symlink_to(ROOT / "Vagrantfile")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.folder = folder
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("VAGRANT_")},
            "VAGRANT_HOME": str(folder / "home"),
            "SANDBOX_VAGRANT_PORT": str(self.port),
        }

    def run(self, *argv: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv,
            cwd=folder or self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=UP_TIMEOUT,
        )

    def vagrant(self, *words: str, ok: bool = True) -> str:
        done = self.run("vagrant", *words)
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done.stdout + done.stderr

    def ssh(self, *argv: str) -> str:
        return self.vagrant("ssh", "-c", shlex.join(argv))

    def assert_served(self) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/", timeout=20) as reply:
            assert (reply.status, reply.read()) == (200, b"hello")


@pytest.fixture
def project(tmp_path: Path, storage: None) -> Iterator[Project]:
    found = Project(tmp_path / f"sbx-{os.getpid()}")
    yield found
    found.vagrant("destroy", "-f")


@pytest.mark.timeout(600)
def test_up_ssh_curl_halt_destroy(project: Project, box: str, found_box: vmbox.Box | None) -> None:
    networks, volumes = leaks.libvirt_networks(), leaks.libvirt_volumes()
    said = project.vagrant("up", "--provider", "libvirt")
    assert f"Domain type:       {'kvm' if kvm_works() else 'qemu'}" in said
    assert box in said
    project.assert_served()
    project.environment["SANDBOX_VAGRANT_DRIVER"] = "kvm" if kvm_works() else "qemu"  # chosen once, which is enough
    # The server has no privileges in the machine, as at every level.
    server = "grep -hE '^(Uid|CapBnd|NoNewPrivs):' /proc/$(pidof tini)/status"
    kernel, user, become, *status = project.ssh("sh", "-c", f"uname -r; id -un; su -c 'id -un'; {server}").splitlines()
    assert kernel != os.uname().release
    assert "cloud" in kernel
    assert (user, become) == ("vagrant", "root")
    fields = dict(line.split(":\t") for line in status)
    assert fields["Uid"].split() == ["10001"] * 4
    assert int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"
    assert_the_host_is_out_of_reach(project)
    assert vagrant.prune(dry_run=False) == [], "a machine that somebody has stays"
    project.vagrant("up")  # the machine runs: there is nothing to do, and the used port is its own
    assert "graceful" in project.vagrant("halt")
    assert vagrant.prune(dry_run=False) == [], "so does one that is halted"
    project.vagrant("up")
    project.assert_served()
    assert project.vagrant("ssh", "-c", "cat kept").strip() == "kept"
    project.vagrant("destroy", "-f")
    assert leaks.libvirt_networks() == networks
    assert not nftables.table_exists("inet", vagrant.TABLE)
    if found_box is None:
        assert leaks.libvirt_volumes() > volumes, "the box's disk, which Vagrant keeps"
        done = project.run("make", "unbox", f"BIN={BIN}", folder=ROOT)
        assert done.returncode == 0, done.stdout + done.stderr
        assert leaks.libvirt_volumes() == volumes
        assert not vmbox.box_dir().exists()


def assert_the_host_is_out_of_reach(project: Project) -> None:
    """No service that listens on all addresses of the host answers the machine's root, at any address.

    The same words reach the same services from the host itself; from the machine too, once the rules are away.
    """
    with lab.use(), echoing() as port:
        found = subprocess.run(["ip", "-4", "-o", "addr", "show"], check=True, capture_output=True, text=True).stdout
        addresses = {line.split()[3].split("/")[0] for line in found.splitlines() if line.split()[1] != "lo"}
        assert {vagrant.HOST_ADDRESS, network.HOST_ADDRESS} < addresses, "and the host's own"
        services = [f"tcp,{address},{port}" for address in sorted(addresses)]
        services.append(f"udp,{vagrant.HOST_ADDRESS},{port}")

        def talk(timeout: float) -> str:
            return shlex.join(["python3", "-c", TALK, str(timeout), *services])

        here = subprocess.run(["sh", "-c", talk(5)], check=True, capture_output=True, text=True)
        assert here.stdout.splitlines() == _each(services, "pong")
        # Its DHCP client adds no default route; root does.
        route = f"/usr/lib/sandbox-vm/busybox route add default gw {vagrant.HOST_ADDRESS}"
        closed = project.ssh("sh", "-c", f"echo kept >kept; sync; su -c '{route}'; {talk(0.5)}")
        assert closed.splitlines() == _each(services, "TimeoutError")
        nftables.load(f"delete table inet {vagrant.TABLE}\n")
        assert project.ssh("sh", "-c", talk(5)).splitlines() == _each(services, "pong"), "only the rules are in the way"
        vagrant.ensure()


def _each(services: Sequence[str], answer: str) -> list[str]:
    return [f"{service} {answer}" for service in services]


@contextmanager
def echoing() -> Iterator[int]:
    """Run a service of the host on all addresses, by TCP and UDP, and return its port."""
    with socket.create_server(("0.0.0.0", 0)) as tcp, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        port: int = tcp.getsockname()[1]
        udp.bind(("0.0.0.0", port))

        def serve_tcp() -> None:
            while True:
                try:
                    link = tcp.accept()[0]
                except OSError:
                    return
                with link:
                    link.sendall(b"pong")

        def serve_udp() -> None:
            while True:
                word, sender = udp.recvfrom(16)
                if word == b"stop":
                    return
                udp.sendto(b"pong", sender)

        threads = [threading.Thread(target=serve) for serve in (serve_tcp, serve_udp)]
        for thread in threads:
            thread.start()
        try:
            yield port
        finally:
            tcp.shutdown(socket.SHUT_RDWR)
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last:
                last.sendto(b"stop", ("127.0.0.1", port))
            for thread in threads:
                thread.join()


def test_without_a_box_it_says_what_to_do(project: Project, tmp_path: Path) -> None:
    project.environment["SANDBOX_STATE_DIR"] = str(tmp_path / "empty")
    assert "run `make box` first" in project.vagrant("up", ok=False)


def test_a_port_in_use_is_refused(project: Project, box: str) -> None:
    with socket.create_server(("127.0.0.1", project.port)):
        assert f"Port {project.port} is in use" in project.vagrant("up", ok=False)
    assert not nftables.table_exists("inet", vagrant.TABLE)


def test_metadata_names_what_is_there(box: str) -> None:
    raw = json.loads((vmbox.box_dir() / vmbox.DESCRIPTION_FILE).read_text())
    assert raw["name"] == box
    assert all(Path(raw[name]).stat().st_size for name in ("file", "kernel", "initrd"))


def comparison(folder: Path) -> subprocess.Popen[str]:
    """Start a comparison of processes and Vagrant machines that begins with a machine."""
    argv = [SANDBOX, "compare", "--with-vagrant", "reactor", "--isolation", "process", "--samples", "1", "--seed", "1"]
    argv += ["--duration", "1", "--no-isolation-table", "-o", str(folder)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_machine_has_its_row_in_a_comparison(tmp_path: Path, storage: None, box: str) -> None:
    volumes = leaks.libvirt_volumes()
    with comparison(tmp_path) as process:
        out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert COMPARED not in domains()
    assert leaks.libvirt_volumes() == volumes
    document = results.load(tmp_path / "results.json")
    info = document.info("vagrant")
    assert info.label == ("vagrant (KVM)" if kvm_works() else "vagrant (TCG, emulated)")
    assert out.count(info.label) == 2, "once for its startup, once under load"
    assert info.label in (tmp_path / "report.html").read_text()
    samples = [sample for sample in document.samples if sample.level == "vagrant"]
    assert [sample.error for sample in samples] == [None, None]
    for sample in samples:
        assert sample.startup_s is not None
        assert sample.startup_s > 1, "a machine boots"
        assert sample.load is not None
        assert sample.load.requests > 0
        assert sum(sample.load.errors.values()) == 0
    assert "vagrant" in {caveat.code for caveat in document.warnings}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_comparison_that_is_cut_short_leaves_no_machine(
    tmp_path: Path, storage: None, box: str, number: signal.Signals
) -> None:
    """Nothing is left after Ctrl-C, or after SIGKILL and the next `prune`."""
    volumes = leaks.libvirt_volumes()
    with comparison(tmp_path) as process:
        deadline = time.monotonic() + 120
        while COMPARED not in vagrant.virsh("list", "--name").split():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    if number == signal.SIGKILL:
        assert COMPARED in domains()
        done = subprocess.run([SANDBOX, "prune"], capture_output=True, text=True, check=True, timeout=120)
        assert f"removed Vagrant machine of a comparison, {paths.vagrant_dir()}" in done.stdout
    else:
        assert process.returncode == 128 + number, err
        assert "INCOMPLETE: the run was interrupted" in out
    assert COMPARED not in domains()
    assert leaks.libvirt_volumes() == volumes
    assert not paths.vagrant_dir().exists()
