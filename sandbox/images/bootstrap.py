"""Run mmdebstrap: choose its options, report its progress, and explain its errors."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from sandbox.errors import ImageError, UnavailableError
from sandbox.images import contained, sources
from sandbox.images.recipe import Recipe
from sandbox.images.workspace import Workspace

MERGED_USR_HOOK = Path("/usr/share/mmdebstrap/hooks/merged-usr")
"""A hook that makes /bin and the like symbolic links before packages are unpacked. Without it, apt installs usrmerge
and with it all of Perl, 50 MB; the result is otherwise the same."""

Progress = Callable[[str], None]

_STEPS = re.compile(
    r"I: (running apt-get update|downloading packages|extracting archives|installing [a-z ]+|creating \w+)"
)

_EXPLAINED: tuple[tuple[str, str, str], ...] = (
    (
        r"No space left on device|don't have enough free space",
        "the disk is full",
        "free space on the state directory's file system, or set SANDBOX_STATE_DIR to another",
    ),
    (
        r"NO_PUBKEY|is not signed|keyring .* (does not exist|not found)|unable to find .*keyring",
        "the mirror's signature could not be verified",
        "apt-get install debian-archive-keyring",
    ),
    (
        r"Could not resolve|Temporary failure resolving|Could not connect|Connection (failed|refused|timed out)"
        r"|Unable to connect|Network is unreachable|404 +Not Found|does not have a Release file",
        "the mirror could not be used",
        f"set {sources.MIRROR_ENV} to one that this host can reach",
    ),
    (r"Unable to locate package", "the mirror lacks a package of the recipe", "use a complete mirror"),
    (
        r"unshare.*Operation not permitted|cannot mount|mount.*(permission denied|not permitted)",
        "root may not create mount and pid namespaces on this host",
        "in a container, this needs CAP_SYS_ADMIN",
    ),
)


def packages_tar(recipe: Recipe, target: Path, space: Workspace, progress: Progress) -> None:
    """Install the root filesystem's packages into a tar file, with Python's modules compiled.

    Raises:
        UnavailableError, ImageError: as for `_run`.
    """
    options = ["--variant=essential", "--format=tar"]
    options += [f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.rootfs["exclude"]]
    if MERGED_USR_HOOK.is_dir():
        options += [f"--hook-directory={MERGED_USR_HOOK}"]
    folders = " ".join(shlex.quote(folder) for folder in recipe.rootfs["compile"])
    # Debian's bytecode has time stamps, which no longer match once the archive's times are clamped. Unchecked hashes
    # always match, and the same source gives the same bytecode (PEP 552).
    options += [
        '--customize-hook=PYTHONHASHSEED=0 chroot "$1" /usr/bin/python3 -I -m compileall -q -f '
        f"--invalidation-mode unchecked-hash {folders}"
    ]
    _run(recipe, options, recipe.rootfs["packages"], target, space, progress)


def extracted_tree(recipe: Recipe, target: Path, space: Workspace, progress: Progress) -> None:
    """Extract a VM's kernel, and tools with their libraries, into a directory; no package script is run.

    Raises:
        UnavailableError, ImageError: as for `_run`.
    """
    options = ["--variant=extract", "--format=directory"]
    _run(recipe, options, recipe.kernel["packages"], target, space, progress)


def explain(lines: Sequence[str]) -> tuple[str, str | None]:
    """Find the cause of a failed run, and its remedy if known, in its last lines of output."""
    for pattern, message, hint in _EXPLAINED:
        if any(re.search(pattern, line, re.IGNORECASE) for line in lines):
            return message, hint
    errors = [line for line in lines if line.startswith("E: ")]
    # mmdebstrap's last "E:" line only says that a step failed; the first says why.
    said = errors[0].removeprefix("E: ") if errors else next((line for line in reversed(lines) if line), "no output")
    return said, None


def _run(
    recipe: Recipe, options: Sequence[str], packages: Sequence[str], target: Path, space: Workspace, progress: Progress
) -> None:
    """Run mmdebstrap.

    Raises:
        UnavailableError: it is not installed.
        ImageError: it failed; the message says why, and the hint where its output is.
    """
    if shutil.which("mmdebstrap", path=contained.PATH) is None:
        raise UnavailableError("mmdebstrap is not installed", "sandbox doctor --fix, or: apt-get install mmdebstrap")
    mirrors = sources.choose(recipe.suite, recipe.architecture)
    progress(f"packages from {mirrors.origin}")
    arguments = list(mirrors.arguments)
    if mirrors.sources:
        listed = space.scratch / "host.sources"
        listed.write_text(mirrors.sources, encoding="utf-8")
        arguments = [str(listed)]
    settings = space.scratch / "apt.conf"
    settings.write_text("".join(f"{line}\n" for line in sources.apt_options()), encoding="utf-8")
    settings.chmod(0o600)  # a proxy's address may contain a password
    command = [
        "mmdebstrap",
        "--mode=root",
        f"--architectures={recipe.architecture}",
        f"--aptopt={settings}",
        '--aptopt=Acquire::Languages "none"',
        *options,
        "--include=" + ",".join(packages),
        recipe.suite,
        str(target),
        *arguments,
    ]
    space.log.unlink(missing_ok=True)

    def step(line: str) -> None:
        if match := _STEPS.match(line):
            progress(match[1])

    code, tail = contained.run(
        command,
        lease=space.lease,
        log=space.log,
        environment={"TMPDIR": str(space.scratch), "SOURCE_DATE_EPOCH": str(recipe.epoch)},
        on_line=step,
    )
    if code != 0:
        message, hint = explain(tail)
        where = f"its output is in {space.log}"
        raise ImageError(f"mmdebstrap failed: {message}", f"{hint}; {where}" if hint else where)
