"""`vagrant up` with the repository's Vagrantfile, on a real libvirtd; everything of it is gone afterwards."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import images
from sandbox.host import kvm_works
from sandbox.images import Form
from sandbox.images import vagrant as vmbox

pytestmark = [pytest.mark.level("vm"), pytest.mark.needs("program.vagrant"), pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
UP_TIMEOUT = 240.0
"""Seconds; up takes about 20, most of it Vagrant's and an emulated machine's start."""


def virsh(*words: str) -> str:
    done = subprocess.run(
        ["virsh", "-q", "-c", "qemu:///system", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return done.stdout if done.returncode == 0 else ""


def volumes() -> set[str]:
    return {line.split()[0] for line in virsh("vol-list", "default").splitlines() if line.strip()}


def networks() -> set[str]:
    return set(virsh("net-list", "--all", "--name").split())


@pytest.fixture
def storage() -> Iterator[None]:
    """Remove the volumes that come, and the pool if it came too: of the box, Vagrant leaves both."""
    pools, before = set(virsh("pool-list", "--all", "--name").split()), volumes()
    yield
    for name in volumes() - before:
        virsh("vol-delete", "--pool", "default", name)
    if "default" not in pools:
        virsh("pool-destroy", "default")
        virsh("pool-undefine", "default")


@pytest.fixture
def box() -> Iterator[str]:
    """The box's name; one that was not there before goes again."""
    images.ensure(Form.VM, lambda _: None)
    known = vmbox.find()
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
    yield found.name
    if known is None:
        shutil.rmtree(vmbox.box_dir())


class Project:
    """A folder with the repository's Vagrantfile, so that a machine of the checkout itself is left alone."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        # A link: the file looks for the environment beside where it really is.
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

    def vagrant(self, *words: str, ok: bool = True) -> str:
        done = subprocess.run(
            ["vagrant", *words],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=UP_TIMEOUT,
        )
        assert (done.returncode == 0) == ok, done.stdout + done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def project(tmp_path: Path, storage: None) -> Iterator[Project]:
    found = Project(tmp_path / f"sbx-{os.getpid()}")
    yield found
    found.vagrant("destroy", "-f")


@pytest.mark.timeout(600)
def test_up_ssh_curl_halt_destroy(project: Project, box: str) -> None:
    before = networks()
    said = project.vagrant("up", "--provider", "libvirt")
    assert f"Domain type:       {'kvm' if kvm_works() else 'qemu'}" in said
    assert box in said
    answers = project.vagrant("ssh", "-c", "uname -r; id -un; su -c 'id -un'").split()
    kernel, user, become = answers[-3:]
    assert kernel != os.uname().release
    assert "cloud" in kernel
    assert (user, become) == ("vagrant", "root")
    with urllib.request.urlopen(f"http://127.0.0.1:{project.port}/", timeout=20) as reply:
        assert (reply.status, reply.read()) == (200, b"hello")
    # The server is as little to the machine as it is at every level.
    uid = project.vagrant("ssh", "-c", "grep -hE '^(Uid|CapBnd|NoNewPrivs):' /proc/$(pidof tini)/status")
    fields = dict(line.split(":\t") for line in uid.splitlines() if ":\t" in line)
    assert fields["Uid"].split() == ["10001"] * 4
    assert int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"
    project.vagrant("up")  # of a machine that runs: nothing to do, and the port in use is its own
    project.vagrant("ssh", "-c", "echo kept > kept; sync")
    assert "graceful" in project.vagrant("halt")
    project.vagrant("up")
    assert project.vagrant("ssh", "-c", "cat kept").strip() == "kept"
    project.vagrant("destroy", "-f")
    assert networks() == before


def test_without_a_box_it_says_what_to_do(project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project.environment["SANDBOX_STATE_DIR"] = str(tmp_path / "empty")
    assert "run `make box` first" in project.vagrant("up", ok=False)


def test_a_port_in_use_is_refused(project: Project, box: str) -> None:
    with socket.create_server(("127.0.0.1", project.port)):
        assert f"Port {project.port} is in use" in project.vagrant("up", ok=False)


def test_metadata_names_what_is_there(box: str) -> None:
    raw = json.loads((vmbox.box_dir() / vmbox.DESCRIPTION_FILE).read_text())
    assert raw["name"] == box
    assert all(Path(raw[name]).stat().st_size for name in ("file", "kernel", "initrd"))
