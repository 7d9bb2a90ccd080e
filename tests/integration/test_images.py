"""Images with the real tools: mmdebstrap, the kernel, dockerd. The shared image cache is used, and left as it was."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox import images
from sandbox.errors import BusyError, ImageError
from sandbox.images import build, cache, dockerd, memo, recipe
from sandbox.images.recipe import Form, Stage, digests
from sandbox.state import paths
from sandbox.state.data import data_dir

pytestmark = pytest.mark.needs("root", "program.mmdebstrap")

PYTHON = "/usr/bin/python3"
CLI = [sys.executable, "-m", "sandbox"]


def quiet(_: str) -> None:
    pass


@pytest.fixture
def rootfs() -> Path:
    image = images.ensure(Form.ROOTFS, quiet)
    assert image.path is not None
    return image.path


@pytest.fixture
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use an empty image cache."""
    monkeypatch.setenv(paths.STATE_ENV, str(tmp_path / "state"))
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    return tmp_path / "state" / "images"


@pytest.fixture
def seeded(rootfs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a separate image cache that already has the slow stages."""
    del rootfs
    base = cache.read(Stage.BASE, digests()[Stage.BASE])
    if base is None:
        pytest.skip("the base was removed after the root filesystem was built from it")
    own = tmp_path / "state" / "images"
    own.mkdir(parents=True)
    shutil.copytree(base.directory, own / base.directory.name)
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")  # so that nothing is removed from Docker
    monkeypatch.setenv(paths.STATE_ENV, str(tmp_path / "state"))
    return own


@pytest.fixture
def workloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use a copy of the workloads instead of the real ones."""
    copy = tmp_path / "workloads"
    shutil.copytree(data_dir("workloads"), copy)
    for module in (recipe, build, memo):
        monkeypatch.setattr(module, "data_dir", lambda name: copy if name == "workloads" else data_dir(name))
    return copy


def inside(root: Path, *argv: str) -> str:
    # Without network and /proc, so that only the image is used.
    done = subprocess.run(["unshare", "--net", "chroot", str(root), *argv], capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def temporaries(directory: Path) -> list[str]:
    return [name for name in os.listdir(directory) if name.startswith(".tmp-")] if directory.exists() else []


def test_the_root_filesystem_runs_the_workloads(rootfs: Path) -> None:
    server = ["/opt/sandbox/workloads/__main__.py", "reactor", "--host", "127.0.0.1", "--port", "0"]
    with subprocess.Popen(
        ["chroot", "--userspec=10001:10001", str(rootfs), "/usr/bin/tini", "--", PYTHON, "-I", "-S", *server],
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stderr is not None
            url = next(found[0] for line in process.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))
            with urllib.request.urlopen(f"{url}healthz", timeout=10) as answer:
                assert answer.status == 200
        finally:
            process.terminate()
    assert process.returncode in (0, 128 + signal.SIGTERM)
    assert "tini version" in inside(rootfs, "/usr/bin/tini", "--version")
    assert inside(rootfs, PYTHON, "-c", "import httptools, ssl, sqlite3, ctypes; print('ok')").strip() == "ok"


def test_everything_is_compiled_ahead(rootfs: Path) -> None:
    code = "import sys; sys.path[:0] = ['/opt/sandbox']; import asyncio, http.server, workloads.command"
    told = inside(rootfs, PYTHON, "-I", "-v", "-c", code)
    # `code object from PATH` without quotes: the source was just compiled (importlib's verbose messages).
    compiled = [line for line in told.splitlines() if line.startswith("# code object from /")]
    assert compiled == []
    assert "# code object from '/opt/sandbox/workloads/__pycache__/" in told


def test_the_root_filesystem_is_ready_to_be_read_only(rootfs: Path) -> None:
    assert rootfs.stat().st_uid == 0
    assert rootfs.stat().st_mode & 0o777 == 0o755
    for name in ("proc", "sys", "dev", "run", "tmp", "var/tmp"):
        assert (rootfs / name).is_dir()
    for name in ("etc/fstab", "etc/resolv.conf"):
        assert (rootfs / name).read_bytes() == b""
    assert "sandbox:x:10001:10001:" in (rootfs / "etc/passwd").read_text()
    for name in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/lib/apt/lists", "var/cache/apt"):
        files = [path for path in (rootfs / name).rglob("*") if path.is_file()]
        assert files == []
    text = "".join(path.read_text() for path in (rootfs / "etc/apt").rglob("*") if path.is_file())
    assert "://" not in text
    epoch = recipe.load().epoch
    young = [path for path in rootfs.rglob("*") if path.lstat().st_mtime > epoch]
    assert young == []


def test_what_is_kept_is_what_was_built(rootfs: Path) -> None:
    entry = cache.read(Stage.ROOTFS, digests()[Stage.ROOTFS])
    assert entry is not None
    assert entry.path == rootfs
    assert entry.differences() == []
    assert "python3" in entry.facts["packages"]


def test_a_workloads_change_rebuilds_the_rootfs_alone(seeded: Path, workloads: Path) -> None:
    first = images.ensure(Form.ROOTFS, quiet)
    (workloads / "extra.py").write_text("ANSWER = 42\n")
    assert images.find(Form.ROOTFS) is None
    lines: list[str] = []
    second = images.ensure(Form.ROOTFS, lines.append)
    assert first.digest != second.digest
    assert not [line for line in lines if line.startswith("base")]
    assert second.path is not None
    assert (second.path / "opt/sandbox/workloads/extra.py").exists()
    assert list((second.path / "opt/sandbox/workloads/__pycache__").glob("extra.*.pyc"))
    (workloads / "extra.py").unlink()
    assert images.find(Form.ROOTFS) == first
    assert images.remove(old=True).removed == [f"image rootfs-{second.digest[:12]}"]
    assert temporaries(seeded) == []


def test_the_same_input_gives_the_same_bytes(seeded: Path, rootfs: Path) -> None:
    manifest = cache.MANIFEST_FILE
    shared = json.loads((rootfs.parent / manifest).read_text())
    image = images.ensure(Form.ROOTFS, quiet)
    assert image.path is not None
    assert image.path.is_relative_to(seeded)
    ours = json.loads((image.path.parent / manifest).read_text())
    assert ours["digest"] == shared["digest"]
    assert ours["content"] == shared["content"]


def test_a_workload_that_does_not_compile(seeded: Path, workloads: Path) -> None:
    (workloads / "wrong.py").write_text("def (:\n")
    with pytest.raises(ImageError, match="could not be compiled"):
        images.ensure(Form.ROOTFS, quiet)
    assert not list(seeded.glob("rootfs-*"))
    assert temporaries(seeded) == []


def test_a_corrupt_image_is_rebuilt(seeded: Path) -> None:
    first = images.ensure(Form.ROOTFS, quiet)
    assert first.path is not None
    (first.path / "usr/bin/tini").write_bytes(b"not an init")
    assert images.find(Form.ROOTFS) is None
    lines: list[str] = []
    second = images.ensure(Form.ROOTFS, lines.append)
    assert second.path == first.path
    assert any("damaged" in line for line in lines)
    assert images.verify(quiet) == []


def test_an_image_in_use_is_kept(seeded: Path) -> None:
    image = images.ensure(Form.ROOTFS, quiet)
    assert image.path is not None
    sleep = ["/usr/bin/sleep", "60"]
    # The image is used as a root, by a mount in another mount namespace, and by a mount here.
    chrooted = subprocess.Popen(["chroot", str(image.path), *sleep])
    mounted = ["sh", "-c", f"mount --bind {image.path} /mnt && cd / && exec sleep 60"]
    namespace = subprocess.Popen(["unshare", "--mount", "--propagation", "private", *mounted])
    try:
        for process in (chrooted, namespace):
            deadline = time.monotonic() + 10
            found = ""
            while str(process.pid) not in found and time.monotonic() < deadline:
                found = " ".join(images.remove(image.digest, dry_run=True).kept)
                time.sleep(0.05)
            assert f"process {process.pid} (" in found
            process.kill()
            process.wait()
    finally:
        for process in (chrooted, namespace):
            process.kill()
            process.wait()
    (seeded / "aside").mkdir()
    subprocess.run(["mount", "--bind", str(seeded / "aside"), str(image.path / "mnt")], check=True)
    try:
        (seeded / "aside/precious").write_text("x")
        assert "a mount at" in images.remove(image.digest).kept[0]
    finally:
        subprocess.run(["umount", str(image.path / "mnt")], check=True)
    assert (seeded / "aside/precious").exists()
    assert images.remove(image.digest).removed == [f"image rootfs-{image.digest[:12]}"]


def builder(*command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(command or [*CLI, "images", "build", "rootfs"], stderr=subprocess.PIPE, text=True)


def read_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr is not None
    seen = []
    for line in process.stderr:
        seen.append(line)
        if text in line:
            return
    pytest.fail(f"{text!r} was never said: {seen}")


def of_this_build(directory: Path) -> list[str]:
    """Return the live processes that have the directory on their command line."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if str(directory) in command:
            found.append(f"{entry.name} {command[:120]}")
    return found


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_build_leaves_no_half_image(own_state: Path, number: signal.Signals) -> None:
    with builder() as process:
        read_until(process, "base: extracting archives")
        assert of_this_build(own_state)
        process.send_signal(number)
        process.communicate(timeout=30)
    assert process.returncode in (-number, 128 + number)
    deadline = time.monotonic() + 10
    while of_this_build(own_state) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert of_this_build(own_state) == []
    assert str(own_state) not in Path("/proc/self/mountinfo").read_text()
    if number is signal.SIGKILL:
        assert len(temporaries(own_state)) == 1
        # Its children, which may not have the directory on their command line, keep its lock until they have ended.
        while not (found := images.prune(dry_run=True)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(found) == 1
    images.prune()
    assert [name for name in os.listdir(own_state) if name != "build.log"] == []


@pytest.mark.slow
def test_two_builds_at_once_build_once(seeded: Path) -> None:
    with builder() as first, builder() as second:
        told = [process.communicate(timeout=120)[1] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert sorted(text.count("rootfs: built in") for text in told) == [0, 1]
    assert sum("waiting for another command" in text for text in told) <= 1
    assert len(list(seeded.glob("rootfs-*"))) == 1


@pytest.mark.slow
def test_a_full_disk_is_one_line(tmp_path: Path) -> None:
    # In a separate mount namespace, with which the small file system goes away.
    state = tmp_path / "small"
    state.mkdir()
    needs_nothing = (
        "from sandbox.images import build; build.DISK_NEEDED = dict.fromkeys(build.DISK_NEEDED, 0); "
        "from sandbox.cli import main; import sys; sys.argv[1:] = ['images', 'build', 'rootfs']; main()"
    )
    for command, words in (
        (f"{sys.executable} -m sandbox images build rootfs", "MiB free, and the build needs about"),
        (f'{sys.executable} -c "{needs_nothing}"', "the disk is full"),
    ):
        script = f"mount -t tmpfs -o size=40m tmpfs {state} && {command}; code=$?; ls -A {state}/images; exit $code"
        done = subprocess.run(
            ["unshare", "--mount", "sh", "-c", script],
            env={**os.environ, paths.STATE_ENV: str(state)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 125
        errors = [line for line in done.stderr.splitlines() if line.startswith("sandbox: ")]
        assert len(errors) == 1
        assert words in errors[0]
        assert "Traceback" not in done.stderr
        assert [name for name in done.stdout.split() if name != "build.log"] == []


@pytest.mark.slow
def test_no_mirror_is_one_line(own_state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SANDBOX_APT_MIRROR", "http://127.0.0.1:1/debian")
    done = subprocess.run([*CLI, "images", "build", "rootfs"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 125
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("sandbox: ")]
    assert "the mirror could not be used" in error
    assert "SANDBOX_APT_MIRROR" in error
    assert (own_state / "build.log").exists()
    assert temporaries(own_state) == []


@pytest.mark.level("vm")
def test_the_vm_form(rootfs: Path) -> None:
    image = images.ensure(Form.VM, quiet)
    assert image.path is not None
    assert {path.name for path in image.path.iterdir()} == {"vmlinuz", "initrd", "disk.raw"}
    assert all(path.stat().st_mode & 0o444 == 0o444 for path in image.path.iterdir())


@pytest.fixture
def tagged() -> Iterator[str]:
    """Return a digest that only the test uses, and remove its image at the end."""
    digest = "feed" * 16
    yield digest
    dockerd.remove(dockerd.reference(digest))


def docker(*argv: str) -> str:
    return subprocess.run(["docker", *argv], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


@pytest.mark.level("container")
def test_the_docker_form_runs_as_it_is(rootfs: Path) -> None:
    image = images.ensure(Form.DOCKER, quiet)
    assert image.reference is not None
    (config,) = json.loads(docker("image", "inspect", "--format", "[{{json .Config}}]", image.reference))
    assert config["User"] == "10001:10001"
    assert config["Cmd"][:3] == ["/usr/bin/tini", "--", PYTHON]
    assert "HOME=/tmp" in config["Env"]
    assert config["Labels"][dockerd.LABEL_DIGEST] == image.digest
    code = "import os; print(os.getuid(), os.getgid(), os.environ['LANG'])"
    told = docker("run", "--rm", "--network", "none", "--read-only", image.reference, PYTHON, "-I", "-c", code)
    assert told == "10001 10001 C.UTF-8"


@pytest.mark.level("container")
def test_an_image_that_a_container_has_is_kept(rootfs: Path, tagged: str) -> None:
    del rootfs
    small = Path(data_dir("images"))
    dockerd.load(small, tagged, tagged, recipe.load().docker, 10001)
    container = docker("create", dockerd.reference(tagged))
    try:
        with pytest.raises(BusyError):
            dockerd.remove(dockerd.reference(tagged))
    finally:
        docker("rm", container)
    assert any(item.digest == tagged and not item.current for item in images.ls()[0])
    assert dockerd.remove(dockerd.reference(tagged))


@pytest.mark.level("container")
def test_an_import_that_is_killed_leaves_nothing(tmp_path: Path, tagged: str) -> None:
    # Large enough that the kill arrives in the middle.
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 30)
    code = (
        "from pathlib import Path; from sandbox.images import dockerd, recipe; "
        f"dockerd.load(Path({str(tmp_path)!r}), {tagged!r}, {tagged!r}, recipe.load().docker, 10001)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as process:
        time.sleep(1.0)
        assert process.poll() is None
        process.kill()
    time.sleep(1.0)
    assert dockerd.find(tagged) is None
    assert docker("images", "-q", dockerd.reference(tagged)) == ""
