"""Build one stage from the stages that it depends on. The caller holds the lock of the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sandbox.errors import ImageError
from sandbox.images import bootstrap, cache, contained, dockerd, tree
from sandbox.images.cache import Entry
from sandbox.images.recipe import Recipe, Stage, digests
from sandbox.images.workspace import Workspace, image_errors, workspace
from sandbox.state.data import data_dir

Progress = Callable[[str], None]
Made = tuple[list[str], dict[str, Any]]
"""The key files and the facts of a result (see cache.Entry)."""

ARCHIVE = "base.tar"
VM_FILES = ("vmlinuz", "initrd", "disk.raw")

MIB = 1024 * 1024
DISK_NEEDED = {Stage.BASE: 700 * MIB, Stage.KERNEL: 500 * MIB, Stage.ROOTFS: 200 * MIB, Stage.VM: 400 * MIB}
"""Approximate bytes of disk that a build takes at its peak, including downloads."""

DEPENDENCIES: Mapping[Stage, tuple[Stage, ...]] = {
    Stage.BASE: (),
    Stage.KERNEL: (),
    Stage.ROOTFS: (Stage.BASE,),
    Stage.DOCKER: (Stage.ROOTFS,),
    Stage.VM: (Stage.ROOTFS, Stage.KERNEL),
}


def stage(which: Stage, digest: str, recipe: Recipe, below: Mapping[Stage, Entry], progress: Progress) -> Entry:
    """Build a stage that is kept on disk, from the entries that it depends on.

    Raises:
        ImageError, UnavailableError: it could not be built; nothing of it is left.
    """
    with image_errors(), workspace(DISK_NEEDED[which]) as space:
        content = space.result / cache.CONTENT
        content.mkdir(mode=0o755)
        content.chmod(0o755)
        match which:
            case Stage.BASE:
                key_files, facts = _base(space, recipe, progress)
            case Stage.KERNEL:
                key_files, facts = _kernel(space, recipe, progress)
            case Stage.ROOTFS:
                key_files, facts = _rootfs(space, recipe, below[Stage.BASE], progress)
            case Stage.VM:
                key_files, facts = _vm(space, below, progress)
            case Stage.DOCKER:
                raise ValueError("the Docker form is not kept on disk")
        # The digest was computed before the files were copied: they must not have been edited in between.
        if digests(recipe)[which] != digest:
            raise ImageError("the workloads or the guest's definitions changed during the build", "run it again")
        return cache.commit(space, which, digest, key_files, facts)


def docker(digest: str, recipe: Recipe, rootfs: Entry, progress: Progress) -> None:
    """Load the root filesystem into the Docker daemon.

    Raises:
        UnavailableError, EngineError: as for dockerd.load.
    """
    progress("loading it into docker")
    dockerd.load(rootfs.path, digest, rootfs.digest, recipe.docker, recipe.layout["user"]["id"])


def _base(space: Workspace, recipe: Recipe, progress: Progress) -> Made:
    archive = space.result / cache.CONTENT / ARCHIVE
    bootstrap.packages_tar(recipe, archive, space, progress)
    archive.chmod(0o600)  # it contains apt's configuration, which may have a proxy's password
    return [ARCHIVE], {}


def _kernel(space: Workspace, recipe: Recipe, progress: Progress) -> Made:
    content = space.result / cache.CONTENT
    bootstrap.extracted_tree(recipe, content, space, progress)
    tree.remove(content, recipe.kernel["remove"])
    content.chmod(0o755)
    tree.clamp_times(content, recipe.epoch)
    kernels = sorted(path.relative_to(content).as_posix() for path in content.glob("boot/vmlinu[xz]-*"))
    if not kernels:
        raise ImageError("the recipe's kernel packages contain no kernel", "see [kernel.image] in the recipe")
    return kernels, {"kernel": kernels[-1].partition("-")[2]}


def _rootfs(space: Workspace, recipe: Recipe, base: Entry, progress: Progress) -> Made:
    root = space.result / cache.CONTENT
    progress("extracting the packages")
    extracting = [
        "tar", "--extract", "--preserve-permissions", "--numeric-owner", "--xattrs", "--xattrs-include=*",
        "--file", str(base.path / ARCHIVE), "--directory", str(root),
    ]  # fmt: skip
    code, tail = contained.run(extracting, lease=space.lease, log=space.log, environment={}, on_line=_ignore)
    if code != 0:
        message, hint = bootstrap.explain(tail)
        raise ImageError(f"the packages could not be extracted: {message}", hint)
    packages = tree.installed_packages(root)
    tree.apply_layout(root, recipe.layout)
    progress("adding the workloads")
    target = recipe.layout["workloads"]
    tree.install(data_dir("workloads"), tree.inside(root, target))
    compiling = [
        "chroot", str(root), "/usr/bin/python3", "-I", "-m", "compileall", "-q", "-f",
        "--invalidation-mode", "unchecked-hash", target,
    ]  # fmt: skip
    seed = {"PYTHONHASHSEED": "0"}
    code, tail = contained.run(compiling, lease=space.lease, log=space.log, environment=seed, on_line=_ignore)
    if code != 0:
        raise ImageError(f"the workloads could not be compiled: {tail[-1] if tail else 'no output'}")
    tree.clamp_times(root, recipe.epoch)
    installed = sorted(path.relative_to(root).as_posix() for path in tree.inside(root, target).rglob("*.py"))
    needed = ["usr/bin/python3", "usr/bin/tini", "etc/passwd", "etc/fstab"]
    folders = [name.lstrip("/") for name in recipe.layout["mount_points"]]
    return [*needed, *folders, *installed], {"packages": packages}


def _ignore(line: str) -> None:
    """Ignore a line of output: these tools are fast, and their output is in the log, and in the error if they fail."""
    del line


def _vm(space: Workspace, below: Mapping[Stage, Entry], progress: Progress) -> Made:
    from sandbox.images import vm

    content = space.result / cache.CONTENT
    vm.build_vm(below[Stage.ROOTFS].path, below[Stage.KERNEL].path, content, progress)
    missing = [name for name in VM_FILES if not (content / name).is_file()]
    if missing:
        raise ImageError(f"the VM's image was built without {', '.join(missing)}")
    for path in sorted(content.iterdir()):
        path.chmod(0o644)  # QEMU reads them as a user of its own
    return list(VM_FILES), dict(below[Stage.KERNEL].facts)
