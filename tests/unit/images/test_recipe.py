"""The recipe, and which changes affect which digest."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from sandbox import workloads
from sandbox.errors import ImageError, UnavailableError
from sandbox.images import recipe
from sandbox.images.recipe import Stage, digests, load, tree_digest
from sandbox.isolation.base import INIT
from sandbox.spec import DEFAULT_PORT, SANDBOX_UID
from sandbox.state.data import data_dir


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the data folders, used instead of the real ones."""
    for name in ("images", "vm", "workloads"):
        shutil.copytree(data_dir(name), tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(recipe, "data_dir", lambda name: tmp_path / name)
    return tmp_path


def changed(before: dict[Stage, str]) -> set[str]:
    after = digests()
    return {stage.value for stage in Stage if before[stage] != after[stage]}


def edit(data: Path, old: str, new: str) -> None:
    path = data / "images" / recipe.RECIPE_FILE
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_digests_are_stable_hex(data: Path) -> None:
    first = digests()
    assert set(first) == set(Stage)
    assert len(set(first.values())) == len(Stage)
    assert all(len(value) == 64 and int(value, 16) for value in first.values())
    assert changed(first) == set()


def test_a_workloads_change_leaves_the_slow_stages(data: Path) -> None:
    before = digests()
    with (data / "workloads" / "__main__.py").open("a") as file:
        file.write("# more\n")
    assert changed(before) == {"rootfs", "docker", "vm"}


def test_times_caches_and_hidden_files_do_not_count(data: Path) -> None:
    before = digests()
    main = data / "workloads" / "__main__.py"
    os.utime(main, (1, 1))
    main.chmod(0o600)
    (data / "workloads" / "__pycache__").mkdir()
    (data / "workloads" / "__pycache__" / "x.cpython-311.pyc").write_bytes(b"x")
    (data / "workloads" / ".swp").write_bytes(b"x")
    assert changed(before) == set()


def test_names_and_executable_bits_count(data: Path) -> None:
    before = digests()
    main = data / "workloads" / "__main__.py"
    main.chmod(0o755)
    assert changed(before) == {"rootfs", "docker", "vm"}
    main.chmod(0o644)
    assert changed(before) == set()
    main.rename(main.with_name("other.py"))
    assert changed(before) == {"rootfs", "docker", "vm"}


def test_a_file_cannot_pass_for_two(tmp_path: Path) -> None:
    for name, files in (("a", {"x": "1", "y": "2"}), ("b", {"x": "1 y 0 1 2"}), ("c", {"x": "", "y": "12"})):
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file).write_text(content)
    assert len({tree_digest(tmp_path / name) for name in "abc"}) == 3


@pytest.mark.parametrize(
    ("old", "new", "stages"),
    [
        ('suite = "bookworm"', 'suite = "trixie"', {"base", "kernel", "rootfs", "docker", "vm"}),
        ('"tini"]', '"tini", "curl"]', {"base", "rootfs", "docker", "vm"}),
        ('"sandbox\\n"', '"box\\n"', {"rootfs", "docker", "vm"}),
        ("port = 8080", "port = 8081", {"docker"}),
        ('"dropbear-bin"]', '"dropbear-bin", "kmod"]', {"kernel", "vm"}),
        ("# Data only;", "# Data;", set()),
    ],
)
def test_a_recipe_change_rebuilds_what_depends_on_it(data: Path, old: str, new: str, stages: set[str]) -> None:
    before = digests()
    edit(data, old, new)
    assert changed(before) == stages


def test_a_guest_change_is_the_vms_alone(data: Path) -> None:
    before = digests()
    (data / "vm" / "extra").write_text("x")
    assert changed(before) == {"vm"}


def test_the_digest_is_cheap() -> None:
    # Every start computes it. The bound is wide: it catches a walk of the root filesystem, not a slow machine.
    import time

    digests()
    begin = time.process_time()
    digests()
    assert time.process_time() - begin < 0.05


def test_a_link_among_the_workloads_is_refused(data: Path) -> None:
    (data / "workloads" / "link").symlink_to("/etc/passwd")
    with pytest.raises(ImageError, match="neither a file nor a directory"):
        digests()


@pytest.mark.parametrize(("old", "new"), [('suite = "bookworm"', ""), ("[kernel.image]", "[kernel.x]"), ("[", "[[")])
def test_a_broken_recipe_is_one_line(data: Path, old: str, new: str) -> None:
    edit(data, old, new)
    with pytest.raises(ImageError) as caught:
        load()
    assert "\n" not in caught.value.message


def test_a_missing_recipe_is_one_line(data: Path) -> None:
    (data / "images" / recipe.RECIPE_FILE).unlink()
    with pytest.raises(ImageError, match="recipe cannot be read"):
        load()


@pytest.mark.parametrize(("machine", "debian"), [("x86_64", "amd64"), ("aarch64", "arm64")])
def test_the_kernel_fits_the_machine(machine: str, debian: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    found = load()
    assert found.architecture == debian
    assert any(name.startswith("linux-image") and name.endswith(debian) for name in found.kernel["packages"])


def test_an_unknown_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    with pytest.raises(UnavailableError, match="riscv64"):
        load()


def test_the_recipe_agrees_with_the_rest() -> None:
    found = load()
    assert found.docker["command"] == [*INIT, *workloads.argv("reactor", host="0.0.0.0", port=DEFAULT_PORT)]
    assert found.docker["port"] == DEFAULT_PORT
    assert found.layout["user"] == {"name": "sandbox", "id": SANDBOX_UID, "home": "/tmp"}
    assert found.layout["workloads"] == workloads.INSTALLED_AT
    assert {"/tmp", "/run"} <= set(found.layout["mount_points"])
    assert {"/proc", "/sys", "/dev"} <= set(found.layout["mount_points"])
    assert found.layout["files"]["/etc/fstab"] == ""


def test_no_mirror_is_written_down() -> None:
    for path in data_dir("images").iterdir():
        hosts = [line for line in path.read_text().splitlines() if "://" in line and not line.startswith("#")]
        assert hosts == []
