"""Copying in and out: hostile archives are refused and leave nothing, and valid ones arrive complete."""

from __future__ import annotations

import io
import os
import shutil
import signal
import stat
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox.copying import Bounds, copy_in, copy_out, export, extract
from sandbox.copying.reader import BLOCK, HostileError, Kind, Reader
from sandbox.copying.unpack import TREE, Unpacker, stage
from sandbox.copying.validation import DEFAULT_BOUNDS, Member, members
from sandbox.errors import EngineError, SpecError
from sandbox.isolation.base import Attached, ExecResult, Sandbox, WindowSize

Item = tuple[str, dict[str, Any], bytes]


def item(name: str, content: bytes = b"", **fields: Any) -> Item:
    return name, fields, content


def folder(name: str, **fields: Any) -> Item:
    return item(name, type=tarfile.DIRTYPE, mode=0o755, **fields)


def symlink(name: str, target: str) -> Item:
    return item(name, type=tarfile.SYMTYPE, linkname=target)


def hardlink(name: str, target: str) -> Item:
    return item(name, type=tarfile.LNKTYPE, linkname=target)


def archive(*items: Item, end: bool = True) -> bytes:
    """Build an archive in GNU tar's format, with names as given, valid or not."""
    out = bytearray()
    for name, fields, content in items:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        for key, value in fields.items():
            setattr(info, key, value)
        out += info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape") + content + bytes(-len(content) % BLOCK)
    return bytes(out) + bytes(2 * BLOCK if end else 0)


def reader(data: bytes) -> Reader:
    return Reader(io.BytesIO(data).read)


def checked(*items: Item, bounds: Bounds = DEFAULT_BOUNDS) -> list[Member]:
    return list(members(reader(archive(*items)), bounds))


class LocalCommand(Attached):
    """A command of this host, run in place of one inside."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def resize(self, size: WindowSize) -> None:  # noqa: ARG002
        raise AssertionError("no terminal here")

    def wait(self) -> int:
        return self._process.wait()

    def close(self) -> None:
        self._process.kill()


class Inside:
    """A fake sandbox: commands run on this host, and `tar` can be replaced by another command."""

    def __init__(self, tar: Sequence[str] | None = None) -> None:
        self.record = SimpleNamespace(name="web")
        self._tar = tar

    def exec(self, argv: Sequence[str], *, timeout: float | None = None) -> ExecResult:
        done = subprocess.run(list(argv), capture_output=True, timeout=timeout, check=False)
        return ExecResult(done.returncode, done.stdout, done.stderr)

    def attach(self, argv: Sequence[str], *, stdin: int | None, stdout: int, stderr: int) -> Attached:
        if self._tar is not None and argv[0] == "tar":
            argv = self._tar
        source = subprocess.DEVNULL if stdin is None else stdin
        return LocalCommand(subprocess.Popen(list(argv), stdin=source, stdout=stdout, stderr=stderr))


def inside(tar: Sequence[str] | None = None) -> Sandbox:
    return cast(Sandbox, Inside(tar))


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """The directory that stands for the sandbox's files."""
    path = tmp_path / "box"
    path.mkdir()
    return path


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A directory of the host."""
    path = tmp_path / "here"
    path.mkdir()
    return path


@pytest.fixture
def hostile(tmp_path: Path) -> Callable[..., Sandbox]:
    """Return a sandbox that sends these bytes for any file or directory."""

    def make(data: bytes, code: int = 0) -> Sandbox:
        path = tmp_path / "sent"
        path.write_bytes(data)
        return inside(["sh", "-c", 'cat "$0"; exit "$1"', str(path), str(code)])

    return make


class TestReader:
    def test_reads_what_gnu_tar_writes(self, tmp_path: Path) -> None:
        tree = tmp_path / "tree"
        (tree / "inner").mkdir(parents=True)
        (tree / "inner" / ("long" * 60)).write_bytes(b"x" * 1000)
        (tree / "link").symlink_to("inner/" + "long" * 60)
        os.link(tree / "inner" / ("long" * 60), tree / "second")
        data = subprocess.run(
            ["tar", "--create", "--format=gnu", "--sort=name", "--file=-", f"--directory={tree}", "."],
            capture_output=True,
            check=True,
        ).stdout
        found = [(entry.name, entry.kind, entry.size) for entry in reader(data)]
        assert found == [
            (b"./", Kind.DIRECTORY, 0),
            (b"./inner/", Kind.DIRECTORY, 0),
            (b"./inner/" + b"long" * 60, Kind.FILE, 1000),
            (b"./link", Kind.SYMLINK, 0),
            (b"./second", Kind.HARDLINK, 0),
        ]

    def test_a_size_of_many_gigabytes_is_read_in_base_256(self) -> None:
        data = archive(item("big", size=9 * 1024**3), end=False)
        entry = next(iter(reader(data)))
        assert entry.size == 9 * 1024**3

    @pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"S", b"x", b"g", b"V", b"Z"])
    def test_refuses_every_other_type(self, kind: bytes) -> None:
        with pytest.raises(HostileError):
            list(reader(archive(item("x", type=kind))))

    def test_refuses_posix_archives(self) -> None:
        data = tarfile.TarInfo("x").tobuf(tarfile.USTAR_FORMAT) + bytes(2 * BLOCK)
        with pytest.raises(HostileError, match="GNU"):
            list(reader(data))

    def test_refuses_a_wrong_checksum(self) -> None:
        data = bytearray(archive(item("x")))
        data[0] ^= 1
        with pytest.raises(HostileError, match="checksum"):
            list(reader(bytes(data)))

    @pytest.mark.parametrize("cut", [0, 1, 511, 513, 1023, 1536])
    def test_refuses_an_archive_that_is_cut_off(self, cut: int) -> None:
        data = archive(item("x", b"y" * 600))
        with pytest.raises(HostileError, match="end"):
            list(reader(data[:cut]))

    def test_a_name_without_end_is_not_taken_into_memory(self) -> None:
        taken = 0
        head = tarfile.TarInfo("././@LongLink")
        head.type, head.size = b"L", 1 << 40
        stream = io.BytesIO(head.tobuf(tarfile.GNU_FORMAT))

        def read(count: int) -> bytes:
            nonlocal taken
            taken += count
            return stream.read(count) or b"a" * count

        with pytest.raises(HostileError, match="invalid header for a long name"):
            list(Reader(read))
        assert taken < 10_000

    def test_headers_of_names_alone_do_not_go_on_for_ever(self) -> None:
        head = tarfile.TarInfo("././@LongLink")
        head.type, head.size = b"L", 1
        data = (head.tobuf(tarfile.GNU_FORMAT) + b"a" + bytes(511)) * 3
        with pytest.raises(HostileError, match="invalid header for a long name"):
            list(reader(data))

    @given(st.binary(max_size=4096))
    @settings(deadline=None)
    def test_noise_is_refused_and_nothing_else_is_raised(self, data: bytes) -> None:
        try:
            list(members(reader(data)))
        except HostileError:
            return
        assert data[: 2 * BLOCK] == bytes(2 * BLOCK)

    @given(st.data())
    @settings(deadline=None)
    def test_a_damaged_archive_is_refused_or_harmless(self, data: st.DataObject) -> None:
        sound = archive(folder("d"), item("d/f", b"content" * 100), symlink("d/l", "f"), hardlink("h", "d/f"))
        damaged = bytearray(sound)
        for _ in range(data.draw(st.integers(1, 4))):
            damaged[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
        try:
            for member in members(reader(bytes(damaged))):
                assert not any(part in ("", ".", "..") or "/" in part for part in member.path)
        except HostileError:
            pass


class TestChecked:
    @pytest.mark.parametrize(
        "name", ["/etc/passwd", "../x", "a/../../x", "a/..", "..", "", "a//b", "x" * 256, "a/" * 2500 + "b"]
    )
    def test_refuses_names_that_leave_or_are_absurd(self, name: str) -> None:
        with pytest.raises(HostileError):
            checked(folder("a"), item(name))

    @pytest.mark.parametrize(
        ("at", "target"),
        [
            ("l", "/etc/passwd"),
            ("l", ".."),
            ("l", "../x"),
            ("l", "a/../../x"),
            ("l", "a/.."),
            ("a/l", "../.."),
            ("a/l", "../../x"),
            ("a/l", "./../../x"),
        ],
    )
    def test_refuses_symbolic_links_that_leave(self, at: str, target: str) -> None:
        with pytest.raises(HostileError, match="leads out"):
            checked(folder("a"), symlink(at, target))

    def test_refuses_a_link_to_nothing_or_of_absurd_length(self) -> None:
        for target in ("", "x" * 5000):
            with pytest.raises(HostileError):
                checked(symlink("l", target))

    def test_refuses_a_chain_of_links_each_harmless_by_its_text(self) -> None:
        # a/b/up leads to the target itself, so "a/b/up/.." reads as a/b but resolves to the target's parent.
        with pytest.raises(HostileError, match="leads out"):
            checked(folder("a"), folder("a/b"), symlink("a/b/up", "../.."), symlink("out", "a/b/up/../x"))

    def test_lets_links_within_pass(self) -> None:
        found = checked(folder("a"), item("a/f"), symlink("a/l", "f"), symlink("a/m", "../a/f"), hardlink("h", "a/f"))
        assert [member.link for member in found] == ["", "", "f", "../a/f", ""]
        assert found[-1].source == ("a", "f")

    @pytest.mark.parametrize("target", ["/etc/shadow", "../x", "nothing", "a", "a/l"])
    def test_refuses_hard_links_to_anything_but_a_file_before(self, target: str) -> None:
        with pytest.raises(HostileError):
            checked(folder("a"), symlink("a/l", "f"), hardlink("h", target))

    def test_refuses_a_name_twice_and_a_link_as_a_directory(self) -> None:
        with pytest.raises(HostileError, match="twice"):
            checked(item("a"), item("./a"))
        with pytest.raises(HostileError, match="without the directory"):
            checked(folder("d"), symlink("l", "d"), item("l/x"))

    def test_drops_the_bits_that_give_rights(self) -> None:
        assert [member.mode for member in checked(item("x", mode=0o6755), item("y", mode=0o1777))] == [0o755, 0o777]

    def test_keeps_within_bounds(self) -> None:
        with pytest.raises(HostileError, match="bytes"):
            checked(item("a", b"x" * 6), item("b", b"x" * 6), bounds=Bounds(size=10))
        with pytest.raises(HostileError, match="files"):
            checked(item("a"), item("b"), item("c"), bounds=Bounds(entries=2))
        with pytest.raises(HostileError, match="deep"):
            checked(folder("a"), folder("a/a"), folder("a/a/a"), bounds=Bounds(depth=2))


PARTS = st.sampled_from(["a", "b", "up", ".", "..", "", "etc"])
PATHS = st.lists(PARTS, min_size=1, max_size=5).map("/".join)
ITEMS = st.one_of(
    st.builds(lambda name, body: item(name, body, mode=0o6777), PATHS, st.binary(max_size=8)),
    st.builds(folder, PATHS),
    st.builds(symlink, PATHS, PATHS),
    st.builds(hardlink, PATHS, PATHS),
)


@given(st.lists(ITEMS, max_size=12))
@settings(deadline=None, max_examples=300)
def test_whatever_is_sent_nothing_outside_is_touched(
    tmp_path_factory: pytest.TempPathFactory, items: list[Item]
) -> None:
    base = tmp_path_factory.mktemp("host")
    (base / "etc").mkdir()
    (base / "etc" / "precious").write_text("kept")
    (base / "target").mkdir()
    parent = os.open(base / "target", os.O_RDONLY | os.O_DIRECTORY)
    try:
        with stage(parent) as staged:
            unpacker = Unpacker(staged)
            source = reader(archive(folder("."), *items))
            try:
                for member in members(source):
                    unpacker.add(member, source.content())
                unpacker.finish()
            except HostileError:
                pass
            root = next((base / "target").iterdir()) / TREE
            for path in [root, *root.rglob("*")]:
                assert not path.lstat().st_mode & 0o7000
                try:
                    resolved = path.resolve(strict=True)
                except FileNotFoundError:
                    resolved = Path(os.path.realpath(path))
                except (OSError, RuntimeError):  # a loop of links leads nowhere; realpath would give nonsense for it
                    continue
                assert resolved == root or root in resolved.parents, f"{path} leads to {resolved}"
    finally:
        os.close(parent)
    assert sorted(path.name for path in base.rglob("*")) == ["etc", "precious", "target"]
    assert (base / "etc" / "precious").read_text() == "kept"
    assert (base / "etc" / "precious").stat().st_nlink == 1
    shutil.rmtree(base)


def listing(path: Path) -> list[str]:
    return sorted(str(found.relative_to(path)) for found in path.rglob("*"))


class TestOutOf:
    def test_a_file_by_the_rules_of_docker(self, box: Path, here: Path) -> None:
        (box / "f").write_bytes(b"content")
        (box / "f").chmod(0o640)
        os.utime(box / "f", (1_700_000_000, 1_700_000_000))
        assert copy_out(inside(), f"{box}/f", str(here)) == 7
        assert copy_out(inside(), f"{box}/f", f"{here}/new") == 7
        assert listing(here) == ["f", "new"]
        assert (here / "new").read_bytes() == b"content"
        status = (here / "new").stat()
        assert (stat.S_IMODE(status.st_mode), int(status.st_mtime)) == (0o640, 1_700_000_000)
        (box / "f").write_bytes(b"changed")
        copy_out(inside(), f"{box}/f", f"{here}/new")
        assert (here / "new").read_bytes() == b"changed"

    def test_a_directory_by_the_rules_of_docker(self, box: Path, here: Path) -> None:
        (box / "d" / "empty").mkdir(parents=True)
        (box / "d" / "f").write_text("1")
        (box / "d" / "-x").write_text("2")
        (box / "d" / "l").symlink_to("f")
        copy_out(inside(), f"{box}/d", f"{here}/new")
        assert listing(here) == ["new", "new/-x", "new/empty", "new/f", "new/l"]
        copy_out(inside(), f"{box}/d", f"{here}/new")
        assert "new/d/f" in listing(here)
        shutil.rmtree(here / "new" / "d")
        (here / "new" / "f").unlink()
        (here / "new" / "mine").write_text("kept")
        copy_out(inside(), f"{box}/d/.", f"{here}/new")
        assert listing(here) == ["new", "new/-x", "new/empty", "new/f", "new/l", "new/mine"]
        assert (here / "new" / "l").read_text() == "1"

    @pytest.mark.parametrize(
        ("source", "destination", "word"),
        [
            ("nothing", "x", "there is no"),
            ("f", "no/such", "there is no directory"),
            ("f", "absent/", "does not exist"),
            ("d", "file", "exists and is not a directory"),
            ("l", "x", "-L"),
            ("f", "link", "symbolic link"),
            ("pipe", "x", "neither"),
            ("f", "file/x", "Not a directory"),
        ],
    )
    def test_refuses_with_one_line_and_leaves_nothing(
        self, box: Path, here: Path, source: str, destination: str, word: str
    ) -> None:
        (box / "f").write_text("1")
        (box / "d").mkdir()
        (box / "l").symlink_to("f")
        os.mkfifo(box / "pipe")
        (here / "file").write_text("mine")
        (here / "link").symlink_to("/etc")
        with pytest.raises(SpecError, match=word):
            copy_out(inside(), f"{box}/{source}", f"{here}/{destination}")
        assert listing(here) == ["file", "link"]
        assert (here / "file").read_text() == "mine"

    def test_follows_the_source_where_asked(self, box: Path, here: Path) -> None:
        (box / "f").write_text("1")
        (box / "l").symlink_to("f")
        copy_out(inside(), f"{box}/l", str(here), follow=True)
        assert (here / "l").read_text() == "1"
        assert not (here / "l").is_symlink()

    def test_a_link_on_the_host_is_replaced_and_not_followed(self, box: Path, here: Path) -> None:
        (box / "d").mkdir()
        (box / "d" / "f").write_text("sent")
        (here / "precious").write_text("kept")
        (here / "d").mkdir()
        (here / "d" / "f").symlink_to("../precious")
        copy_out(inside(), f"{box}/d", str(here))
        assert (here / "precious").read_text() == "kept"
        assert (here / "d" / "f").read_text() == "sent"

    def test_a_link_on_the_host_is_no_directory(self, box: Path, here: Path) -> None:
        (box / "d" / "inner").mkdir(parents=True)
        (box / "d" / "inner" / "f").write_text("sent")
        (box / "d" / "a").write_text("sent")
        (here / "elsewhere").mkdir()
        (here / "d").mkdir()
        (here / "d" / "inner").symlink_to("../elsewhere")
        with pytest.raises(SpecError, match="is not a directory and cannot be replaced by one"):
            copy_out(inside(), f"{box}/d", str(here))
        assert listing(here) == ["d", "d/inner", "elsewhere"]

    def test_a_link_that_leads_out_through_one_of_the_host_is_removed(self, box: Path, here: Path) -> None:
        (box / "d").mkdir()
        (box / "d" / "sly").symlink_to("door/passwd")
        (here / "d").mkdir()
        (here / "d" / "door").symlink_to("/etc")
        with pytest.raises(HostileError, match="removed"):
            copy_out(inside(), f"{box}/d", str(here))
        assert listing(here) == ["d", "d/door"]

    @pytest.mark.parametrize(
        "sent",
        [
            [item("f", b"x"), item("../g", b"x")],
            [item("f", b"x"), item("g", b"x")],
            [symlink("f", "/etc/passwd")],
            [folder("f"), item("f/x", b"x")],
            [hardlink("f", "/etc/passwd")],
            [item("f", type=tarfile.CHRTYPE)],
            [],
        ],
    )
    def test_a_sandbox_that_sends_something_else_for_a_file(
        self, box: Path, here: Path, hostile: Callable[..., Sandbox], sent: list[Item]
    ) -> None:
        (box / "f").write_text("1")
        with pytest.raises(HostileError) as caught:
            copy_out(hostile(archive(*sent)), f"{box}/f", str(here))
        assert "\n" not in str(caught.value)
        assert listing(here) == []

    @pytest.mark.parametrize(
        "sent",
        [
            [item("x", b"1")],
            [folder("."), item("x", b"1"), symlink("y", "/")],
            [folder("."), folder("."), item("x", b"1")],
            [folder("."), item("x", b"1" * 5000), item("/etc/x", b"1")],
        ],
    )
    def test_a_sandbox_that_sends_something_else_for_a_directory(
        self, box: Path, here: Path, hostile: Callable[..., Sandbox], sent: list[Item]
    ) -> None:
        with pytest.raises(HostileError):
            copy_out(hostile(archive(*sent)), str(box), f"{here}/new")
        assert listing(here) == []

    def test_a_stream_without_end_is_stopped(self, box: Path, here: Path) -> None:
        head = tarfile.TarInfo("f")
        head.size = 1 << 50
        path = here.parent / "head"
        path.write_bytes(head.tobuf(tarfile.GNU_FORMAT))
        (box / "f").write_text("1")
        endless = inside(["sh", "-c", 'cat "$0"; exec cat /dev/zero', str(path)])
        with pytest.raises(HostileError, match="max-size"):
            copy_out(endless, f"{box}/f", str(here))
        with pytest.raises(EngineError, match="still runs although its stream is complete"):
            copy_out(
                inside(["sh", "-c", 'printf %s x | cat "$0" - /dev/zero', str(self._sound(path))]),
                f"{box}/f",
                str(here),
            )
        assert listing(here) == []

    def test_an_interrupt_leaves_nothing_and_ends_tar(self, box: Path, here: Path, tmp_path: Path) -> None:
        (box / "f").write_text("1")
        path = tmp_path / "head"
        path.write_bytes(archive(item("f", size=100), end=False))
        script = 'echo $$ > "$0.pid"; cat "$0"; exec sleep 60'
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        began = time.monotonic()
        with pytest.raises(KeyboardInterrupt):
            copy_out(inside(["sh", "-c", script, str(path)]), f"{box}/f", str(here))
        assert time.monotonic() - began < 10
        assert listing(here) == []
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.with_suffix(".pid").read_text()), 0)

    @staticmethod
    def _sound(path: Path) -> Path:
        path.write_bytes(archive(item("f", b"1")))
        return path

    def test_tar_that_fails_after_a_sound_archive_leaves_nothing(
        self, box: Path, here: Path, hostile: Callable[..., Sandbox]
    ) -> None:
        (box / "f").write_text("1")
        with pytest.raises(EngineError, match="exit code 2"):
            copy_out(hostile(archive(item("f", b"1")), 2), f"{box}/f", str(here))
        assert listing(here) == []

    def test_the_words_of_tar_are_passed_on(self, box: Path, here: Path) -> None:
        (box / "f").write_text("1")
        with pytest.raises(EngineError, match="no such thing"):
            copy_out(inside(["sh", "-c", "echo tar: no such thing >&2; exit 2"]), f"{box}/f", str(here))

    def test_as_an_archive_it_is_written_anew(self, box: Path, tmp_path: Path) -> None:
        (box / "d").mkdir()
        (box / "d" / "f").write_bytes(b"1" * 700)
        (box / "d" / "f").chmod(0o4755)
        (box / "d" / "l").symlink_to("f")
        with (tmp_path / "out.tar").open("wb") as stream:
            export(inside(), f"{box}/d", stream.fileno())
        with tarfile.open(tmp_path / "out.tar") as found:
            assert [(one.name, one.mode & 0o7000, one.uname) for one in found] == [
                ("d", 0, ""),
                ("d/f", 0, ""),
                ("d/l", 0, ""),
            ]
            content = found.extractfile("d/f")
            assert content is not None
            assert content.read() == b"1" * 700


class TestInto:
    @pytest.fixture(autouse=True)
    def _umask(self) -> Iterator[None]:
        before = os.umask(0o077)
        yield
        os.umask(before)

    def test_a_file_and_a_directory_by_the_rules_of_docker(self, box: Path, here: Path) -> None:
        (here / "f").write_bytes(b"content" * 100_000)
        (here / "f").chmod(0o6755)
        (here / "d" / "empty").mkdir(parents=True)
        (here / "d" / "-x").write_text("1")
        (here / "d" / "l").symlink_to("nowhere")
        assert copy_in(inside(), f"{here}/f", str(box)) == 700_000
        assert stat.S_IMODE((box / "f").stat().st_mode) == 0o755
        copy_in(inside(), f"{here}/f", f"{box}/new")
        assert (box / "new").read_bytes() == (here / "f").read_bytes()
        copy_in(inside(), f"{here}/d", str(box))
        copy_in(inside(), f"{here}/d", f"{box}/e")
        copy_in(inside(), f"{here}/d/.", f"{box}/e/empty")
        deeper = ["e/empty/-x", "e/empty/empty", "e/empty/l"]
        assert listing(box) == sorted(
            ["f", "new", "d", "d/-x", "d/empty", "d/l", "e", "e/-x", "e/empty", "e/l", *deeper]
        )
        assert os.readlink(box / "d" / "l") == "nowhere"

    def test_what_is_no_file_is_left_out_and_told(self, box: Path, here: Path) -> None:
        (here / "d").mkdir()
        os.mkfifo(here / "d" / "pipe")
        (here / "d" / "f").write_text("1")
        notes: list[str] = []
        copy_in(inside(), f"{here}/d", str(box), note=notes.append)
        assert listing(box) == ["d", "d/f"]
        assert len(notes) == 1
        assert "pipe" in notes[0]

    @pytest.mark.parametrize(
        ("source", "destination", "word"),
        [
            ("nothing", "", "there is no"),
            ("f", "no/such", "there is no directory"),
            ("f", "absent/", "does not exist"),
            ("d", "file", "exists and is not a directory"),
        ],
    )
    def test_refuses_with_one_line(self, box: Path, here: Path, source: str, destination: str, word: str) -> None:
        (here / "f").write_text("1")
        (here / "d").mkdir()
        (box / "file").write_text("2")
        with pytest.raises(SpecError, match=word):
            copy_in(inside(), f"{here}/{source}", f"{box}/{destination}")
        assert listing(box) == ["file"]

    def test_tar_that_dies_is_told_and_nobody_waits(self, box: Path, here: Path) -> None:
        (here / "f").write_bytes(bytes(4 * 1024 * 1024))
        with pytest.raises(EngineError, match=r"disk is full.*a part may"):
            copy_in(
                inside(["sh", "-c", "head -c 100 >/dev/null; echo disk is full >&2; exit 2"]), f"{here}/f", f"{box}"
            )
        with pytest.raises(EngineError, match="ended early"):
            copy_in(inside(["true"]), f"{here}/f", str(box))

    def test_an_archive_is_unpacked_inside(self, box: Path, tmp_path: Path) -> None:
        path = tmp_path / "in.tar"
        path.write_bytes(archive(folder("d"), item("d/f", b"1", mode=0o644)) + bytes(1024 * 1024))
        with path.open("rb") as stream:
            extract(inside(), stream.fileno(), str(box))
        assert listing(box) == ["d", "d/f"]
        path.write_bytes(b"no archive" * 1000)
        with path.open("rb") as stream, pytest.raises(EngineError, match="tar"):
            extract(inside(), stream.fileno(), str(box))
        with path.open("rb") as stream, pytest.raises(SpecError, match="is not a directory"):
            extract(inside(), stream.fileno(), f"{box}/d/f")
