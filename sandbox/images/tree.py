"""Turn extracted packages into the root filesystem: user, files, mount points, workloads, times. And list a tree."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from sandbox.errors import ImageError
from sandbox.images.recipe import source_files

_READ_SIZE = 1024 * 1024


def inside(root: Path, path: str) -> Path:
    """Join a path of the recipe to a root.

    Raises:
        ImageError: it leads out of the root.
    """
    parts = Path(path.lstrip("/")).parts
    if not parts or ".." in parts:
        raise ImageError(f"the recipe's path {path!r} is not below the root filesystem", "reinstall sandbox")
    return root.joinpath(*parts)


def remove(root: Path, patterns: Sequence[str]) -> None:
    """Remove what matches a recipe's glob patterns; a pattern may match nothing."""
    for pattern in patterns:
        inside(root, pattern)
        for path in sorted(root.glob(pattern.lstrip("/"))):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def apply_layout(root: Path, layout: Mapping[str, Any]) -> None:
    """Apply a recipe's layout: remove, files, mount points, links, user.

    Raises:
        OSError: writing failed.
        ImageError: a path leads out of the root.
    """
    remove(root, layout["remove"])
    for name, content in layout["files"].items():
        path = inside(root, name)
        path.unlink(missing_ok=True)  # the packages may have left a link
        path.write_text(content, encoding="utf-8")
        path.chmod(0o644)
    for name in layout["mount_points"]:
        inside(root, name).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    for name, target in layout["links"].items():
        link = inside(root, name)
        if link.is_dir() and not link.is_symlink():
            shutil.rmtree(link)
        link.unlink(missing_ok=True)
        link.symlink_to(target)
    root.chmod(0o755)
    add_user(root, **layout["user"])


def add_user(root: Path, name: str, id: int, home: str) -> None:
    """Add a user and a group without a password or a shell (passwd(5), group(5), shadow(5)). Idempotent."""
    lines = {
        "passwd": f"{name}:x:{id}:{id}::{home}:/usr/sbin/nologin",
        "group": f"{name}:x:{id}:",
        "shadow": f"{name}:!:19000::::::",
        "gshadow": f"{name}:!::",
    }
    for file, line in lines.items():
        path = root / "etc" / file
        known = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        kept = [entry for entry in known if entry.partition(":")[0] != name]
        mode = path.stat().st_mode if path.exists() else (0o640 if file.endswith("shadow") else 0o644)
        path.write_text("\n".join([*kept, line]) + "\n", encoding="utf-8")
        path.chmod(stat.S_IMODE(mode))


def install(source: Path, target: Path) -> None:
    """Copy a data folder into the root filesystem, owned by root, with modes 0644 and 0755."""
    target.mkdir(parents=True, exist_ok=True)
    for name, path, executable in source_files(source):
        copy = target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o755 if executable else 0o644)


def clamp_times(root: Path, epoch: int) -> None:
    """Set all modification times later than the epoch to the epoch, so that builds are reproducible."""
    for path in (*_walk(root), root):
        if path.lstat().st_mtime > epoch:
            os.utime(path, (epoch, epoch), follow_symlinks=False)


def listing(root: Path) -> list[str]:
    """List a tree, one JSON array a line: path, mode, uid, gid, and size and SHA-256, link target or device number.

    Times are left out: they do not matter to what runs.
    """
    lines = []
    for path in sorted(_walk(root)):
        status = path.lstat()
        row: list[object] = [str(path.relative_to(root)), status.st_mode, status.st_uid, status.st_gid]
        if stat.S_ISREG(status.st_mode):
            row += [status.st_size, _file_digest(path)]
        elif stat.S_ISLNK(status.st_mode):
            row.append(os.readlink(path))
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            row.append(status.st_rdev)
        lines.append(json.dumps(row))
    return lines


def content_digest(lines: Sequence[str]) -> str:
    """Compute the SHA-256 of a listing."""
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def size(root: Path) -> int:
    """Return the bytes that a tree takes on disk, without the holes of sparse files."""
    return sum(path.lstat().st_blocks * 512 for path in _walk(root))


def installed_packages(root: Path) -> dict[str, str]:
    """Return the versions of the installed packages, from dpkg's status file; empty if there is none."""
    try:
        text = (root / "var/lib/dpkg/status").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return {}
    found = {}
    for paragraph in text.split("\n\n"):
        fields = dict(line.split(": ", 1) for line in paragraph.splitlines() if ": " in line and line[0] != " ")
        if "Package" in fields and "Version" in fields:
            found[fields["Package"]] = fields["Version"]
    return dict(sorted(found.items()))


def _walk(root: Path) -> Iterator[Path]:
    """Yield everything below a root, without following links."""
    for directory, folders, files in os.walk(root):
        for name in (*folders, *files):
            yield Path(directory, name)


def _file_digest(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_SIZE):
            total.update(block)
    return total.hexdigest()
