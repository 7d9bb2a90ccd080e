"""The leak counter sees every kind of leak: one of each is made on purpose, counted, and taken away again."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from sandbox import images
from sandbox.host.checks import EXTRAS
from sandbox.isolation import supervision
from sandbox.kernel import cgroup, syscalls
from sandbox.network import lab as network
from sandbox.network import publish as publishing
from sandbox.network import vagrant
from sandbox.spec import Publish
from sandbox.state import paths
from sandbox.state.record import APP_FOLDER, Record
from sandbox.state.store import Store, named_lock
from tests import leaks
from tests.verbs import Manager

level, needs = pytest.mark.level, pytest.mark.needs
IDENT = "00000000feed"


def _run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True, timeout=60)


@contextmanager
def a_process() -> Iterator[None]:
    group = cgroup.Group(IDENT)
    group.create()

    def join() -> None:
        for path in group.join_files():
            path.write_text("0")

    with subprocess.Popen(["sleep", "60"], preexec_fn=join) as sleeper:  # noqa: PLW1509
        yield
        sleeper.kill()
    group.remove()
    cgroup.remove_parent()


@contextmanager
def a_mount() -> Iterator[None]:
    target = paths.state_dir() / "leaked-mount"
    target.mkdir()
    syscalls.mount("tmpfs", target, "tmpfs")
    yield
    syscalls.umount(target)
    target.rmdir()


@contextmanager
def a_network_namespace() -> Iterator[None]:
    _run("ip", "netns", "add", "sbxleak")
    yield
    _run("ip", "netns", "del", "sbxleak")


@contextmanager
def a_link() -> Iterator[None]:
    _run("ip", "link", "add", network.interface_name(IDENT), "type", "bridge")
    yield
    _run("ip", "link", "del", network.interface_name(IDENT))


@contextmanager
def an_address() -> Iterator[None]:
    with Manager().lab():
        _run("ip", "addr", "add", "198.18.128.77/32", "dev", network.BRIDGE)
        yield


@contextmanager
def a_rule() -> Iterator[None]:
    with Manager().lab():
        _run("nft", "add", "set", "inet", network.TABLE, "leaked", "{ type ipv4_addr; }")
        yield


@contextmanager
def a_cgroup() -> Iterator[None]:
    group = cgroup.Group(IDENT)
    group.create()
    yield
    group.remove()
    cgroup.remove_parent()


@contextmanager
def a_container() -> Iterator[None]:
    image = images.ensure(images.Form.DOCKER, lambda _: None)
    _run("docker", "create", "--name", "leaked-container", "--network", "none", str(image.reference), "true")
    yield
    _run("docker", "rm", "-f", "leaked-container")


@contextmanager
def a_docker_network() -> Iterator[None]:
    _run("docker", "network", "create", "--internal", "--subnet", "198.19.254.0/24", "leaked-network")
    yield
    _run("docker", "network", "rm", "leaked-network")


@contextmanager
def a_docker_volume() -> Iterator[None]:
    _run("docker", "volume", "create", "leaked-volume")
    yield
    _run("docker", "volume", "rm", "leaked-volume")


@contextmanager
def a_domain() -> Iterator[None]:
    definition = paths.state_dir() / "leaked-domain.xml"
    definition.write_text(
        f"<domain type='qemu'><name>sbx-{IDENT}</name><uuid>{uuid.uuid4()}</uuid><memory unit='MiB'>64</memory>"
        "<vcpu>1</vcpu><os><type arch='x86_64'>hvm</type></os></domain>"
    )
    _run("virsh", "-c", "qemu:///system", "define", str(definition))
    yield
    _run("virsh", "-c", "qemu:///system", "undefine", f"sbx-{IDENT}")
    definition.unlink()


@contextmanager
def a_libvirt_network() -> Iterator[None]:
    """Of Vagrant's machines; its rules and its bridge are seen too."""
    vagrant.ensure()
    yield
    vagrant.release()


@contextmanager
def a_libvirt_volume() -> Iterator[None]:
    directory = paths.state_dir() / "leaked-pool"
    directory.mkdir()
    pools = subprocess.run(
        ["virsh", "-c", "qemu:///system", "pool-list", "--name"], check=True, capture_output=True, text=True, timeout=60
    ).stdout.split()
    if vagrant.POOL not in pools:
        _run("virsh", "-c", "qemu:///system", "pool-create-as", vagrant.POOL, "dir", "--target", str(directory))
    _run("virsh", "-c", "qemu:///system", "vol-create-as", vagrant.POOL, "leaked-volume", "4096")
    yield
    _run("virsh", "-c", "qemu:///system", "vol-delete", "--pool", vagrant.POOL, "leaked-volume")
    if vagrant.POOL not in pools:
        _run("virsh", "-c", "qemu:///system", "pool-destroy", vagrant.POOL)
    directory.rmdir()


@contextmanager
def a_comparisons_folder() -> Iterator[None]:
    paths.vagrant_dir().mkdir()
    yield
    paths.vagrant_dir().rmdir()


@contextmanager
def a_state_file() -> Iterator[None]:
    directory = paths.sandboxes_dir() / IDENT
    directory.mkdir(parents=True)
    yield
    directory.rmdir()


@contextmanager
def a_staged_file() -> Iterator[None]:
    directory = paths.sandboxes_dir() / IDENT / APP_FOLDER
    directory.mkdir(parents=True)
    yield
    directory.rmdir()
    directory.parent.rmdir()


@contextmanager
def a_claimed_port() -> Iterator[None]:
    store = Store()
    store.ensure()
    assert store.claim_port(18098, IDENT)
    yield
    store.prune()


@contextmanager
def a_published_port() -> Iterator[None]:
    """Left by a command that was killed: `prune` takes it away."""
    with Manager().lab():
        with named_lock("network"):
            publishing.publish(IDENT, "198.18.2.99", [Publish(18098, 8080)])
        yield
        with named_lock("network"):
            publishing.unpublish(IDENT)


@contextmanager
def a_keeper() -> Iterator[None]:
    """One that has outlived its sandbox, and that one's directory."""
    directory = paths.sandboxes_dir() / IDENT
    directory.mkdir(parents=True)
    record = SimpleNamespace(id=IDENT, directory=directory, owner=None)
    with subprocess.Popen(["sleep", "60"]) as stranger:
        kept = supervision.launch(cast(Record, record), [], pid=stranger.pid)
        supervision.silence(directory)
        shutil.rmtree(directory)
        yield
        stranger.kill()
    kept.close()


@contextmanager
def a_detached_keeper() -> Iterator[None]:
    with subprocess.Popen(["sleep", "60"]) as stranger:
        directory = paths.sandboxes_dir() / IDENT
        directory.mkdir(parents=True)
        record = SimpleNamespace(id=IDENT, directory=directory, owner=None)
        kept = supervision.launch(cast(Record, record), [], pid=stranger.pid)
        kept.leave()
        while IDENT not in Path(f"/proc/{kept.pid}/cmdline").read_text(encoding="utf-8"):
            time.sleep(0.001)
        yield
        stranger.kill()
    supervision.wait_gone(directory)
    shutil.rmtree(directory)


@contextmanager
def a_terminal() -> Iterator[None]:
    master, slave = os.openpty()
    yield
    os.close(slave)
    os.close(master)


@contextmanager
def a_frozen_cgroup() -> Iterator[None]:
    """A sandbox that was paused, and is not let go: its processes cannot even die, so they are shown with it."""
    group = cgroup.Group(IDENT)
    group.create()

    def join() -> None:
        for path in group.join_files():
            path.write_text("0")

    with subprocess.Popen(["sleep", "60"], preexec_fn=join) as sleeper:  # noqa: PLW1509
        group.freeze()
        assert group.frozen()
        yield
        group.remove()
        sleeper.wait()
    cgroup.remove_parent()


@contextmanager
def a_port() -> Iterator[None]:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))):
        yield


@contextmanager
def a_half_image() -> Iterator[None]:
    directory = paths.images_dir() / ".leaked-half"
    directory.mkdir(parents=True)
    yield
    shutil.rmtree(directory)


CASES: list[tuple[str, Callable[[], AbstractContextManager[None]], tuple[str, ...]]] = [
    ("processes", a_process, ()),
    ("mounts", a_mount, ()),
    ("network namespaces", a_network_namespace, ()),
    ("links", a_link, ()),
    ("addresses", an_address, ()),
    ("rules", a_rule, ()),
    ("cgroups", a_cgroup, ()),
    ("containers", a_container, ("container",)),
    ("docker networks", a_docker_network, ("container",)),
    ("docker volumes", a_docker_volume, ("container",)),
    ("domains", a_domain, ("vm",)),
    ("libvirt networks", a_libvirt_network, ("vagrant",)),
    ("rules", a_libvirt_network, ("vagrant",)),
    ("links", a_libvirt_network, ("vagrant",)),
    ("libvirt volumes", a_libvirt_volume, ("vm",)),
    ("state files", a_comparisons_folder, ()),
    ("cgroups", a_frozen_cgroup, ()),
    ("processes", a_frozen_cgroup, ()),
    ("state files", a_state_file, ()),
    ("staged files", a_staged_file, ()),
    ("claimed ports", a_claimed_port, ()),
    ("published", a_published_port, ()),
    ("keepers", a_keeper, ()),
    ("keepers", a_detached_keeper, ()),
    ("terminals", a_terminal, ()),
    ("half images", a_half_image, ()),
    ("ports", a_port, ()),
]


def test_every_kind_has_a_case() -> None:
    assert {kind for kind, _, _ in CASES} == set(leaks.KINDS)


@pytest.mark.parametrize(
    ("kind", "leak"),
    [
        pytest.param(
            kind,
            leak,
            id=f"{kind}-{leak.__name__}",
            marks=[(needs if name in EXTRAS else level)(name) for name in names or ("process",)],
        )
        for kind, leak, names in CASES
    ],
)
def test_the_counter_sees(kind: str, leak: Callable[[], AbstractContextManager[None]]) -> None:
    paths.state_dir().mkdir(parents=True, exist_ok=True)
    before = leaks.snapshot()
    with leak():
        assert leaks.leaked(before, settle=0).get(kind), f"a leak of {kind} was not seen"
    assert kind not in leaks.leaked(before), "what was made on purpose did not go"


def test_nothing_new_is_no_leak() -> None:
    assert leaks.delta(leaks.snapshot(), leaks.snapshot()) == {}
