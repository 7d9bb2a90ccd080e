"""`sandbox images`: build, list, verify and remove images."""

from __future__ import annotations

import os
import sys
import threading
import time
from types import TracebackType
from typing import TYPE_CHECKING

import click

from sandbox.cli.options import format_option
from sandbox.cli.output import Progress, as_json, table
from sandbox.images.recipe import Form

if TYPE_CHECKING:
    from sandbox.images import Item

FORMS = [form.value for form in Form]


class Steps:
    """Progress of a long operation: on a terminal a live line with the elapsed time, otherwise a line for each step."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._line = Progress()
        self._message = ""
        self._begin = 0.0
        self._lock = threading.Lock()
        self._done = threading.Event()
        self._clock = threading.Thread(target=self._tick, daemon=True)

    def __call__(self, message: str) -> None:
        """Show a step."""
        with self._lock:
            self._message, self._begin = message, time.monotonic()
        if self._live:
            self._show()
        else:
            click.echo(message, err=True)

    def __enter__(self) -> Steps:
        if self._live:
            self._clock.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        if self._live:
            self._clock.join()
            self._line.clear()

    def _tick(self) -> None:
        while not self._done.wait(1.0):
            self._show()

    def _show(self) -> None:
        with self._lock:
            seconds = int(time.monotonic() - self._begin)
            self._line(f"{self._message} ({seconds} s)" if seconds else self._message)


@click.group()
def command() -> None:
    """Build, list and remove images of the root filesystem.

    \b
    There are three forms:
      rootfs   a directory, for the levels process and namespace
      docker   an image in the Docker daemon, for container and gvisor
      vm       a kernel, an initramfs and a disk, for vm

    All are built from one recipe, when they are first needed; `build` does so in advance. Packages come from
    $SANDBOX_APT_MIRROR if it is set, else from this host's apt sources, else from Debian.
    """


@command.command()
@click.argument("forms", nargs=-1, type=click.Choice(FORMS), metavar="[FORM]...")
def build(forms: tuple[str, ...]) -> None:
    """Build missing images.

    FORM is rootfs, docker or vm; the default is all of them. Prints where each image is.
    """
    from sandbox import images
    from sandbox.errors import SandboxError

    failure: SandboxError | None = None
    for name in forms or FORMS:
        try:
            with Steps() as steps:
                image = images.ensure(Form(name), steps)
        except SandboxError as error:
            if failure is not None:
                click.echo(f"sandbox: {failure}", err=True)
            failure = error
        else:
            click.echo(f"{image.form} {image.digest[:12]} {image.reference or image.path}")
    if failure is not None:
        raise failure


@command.command("ls")
@format_option
def list_images(form: str) -> None:
    """List images, and the stages of their build."""
    from sandbox import images

    items, notes = images.ls()
    if form == "json":
        as_json([_document(item) for item in items])
    else:
        table(("FORM", "DIGEST", "SIZE", "CREATED", "STATE", "WHERE"), map(_row, items))
    for note in notes:
        click.echo(f"sandbox: {note}", err=True)


@command.command("rm")
@click.argument("references", nargs=-1, metavar="[IMAGE]...")
@click.option("--old", is_flag=True, help="Remove images of earlier recipes or workloads.")
@click.option("-a", "--all", "everything", is_flag=True, help="Remove all images.")
@click.option("--dry-run", is_flag=True, help="Print what would be removed, and remove nothing.")
def remove(references: tuple[str, ...], old: bool, everything: bool, dry_run: bool) -> None:
    """Remove images that are not in use.

    IMAGE is the beginning of a digest, FORM-DIGEST, or a name in Docker.
    """
    from sandbox import images
    from sandbox.errors import BusyError

    if not (references or old or everything):
        raise click.UsageError("name an IMAGE, or use --old or --all", click.get_current_context())
    result = images.remove(*references, old=old, everything=everything, dry_run=dry_run)
    for line in result.removed:
        click.echo(f"would remove {line}" if dry_run else f"removed {line}")
    if result.kept and (references or everything):
        raise BusyError("; ".join(result.kept), "stop and remove those first")
    for line in result.kept:
        click.echo(f"kept: {line}", err=True)
    if not (result.removed or result.kept):
        click.echo("nothing to remove", err=True)


@command.command()
@click.argument("form", type=click.Choice(FORMS), default=Form.ROOTFS.value, metavar="[FORM]")
def path(form: str) -> None:
    """Print where an image is.

    This is the directory of the current image of FORM (rootfs by default), or its name in Docker.
    """
    from sandbox import images
    from sandbox.errors import NotFoundError

    image = images.find(Form(form))
    if image is None:
        raise NotFoundError(f"the {form} image is not built", f"sandbox images build {form}")
    click.echo(image.reference or image.path)


@command.command()
def verify() -> None:
    """Compare images with what was built.

    The images on disk are compared byte by byte. The exit code is 1 if one differs.
    """
    from sandbox import images

    with Steps() as steps:
        lines = images.verify(steps)
    for line in lines:
        click.echo(line)
    if lines:
        raise click.exceptions.Exit(1)


def _row(item: Item) -> tuple[str, ...]:
    state = (item.damage and "damaged") or ("current" if item.current else "old")
    created = time.strftime("%Y-%m-%d %H:%M", time.localtime(item.created))
    size = f"{item.size / 2**20:.0f} MiB"
    return (str(item.stage), item.digest[:12], size, created, state, item.reference or str(item.path))


def _document(item: Item) -> dict[str, object]:
    return {
        "form": item.stage.value,
        "digest": item.digest,
        "size": item.size,
        "created": item.created,
        "current": item.current,
        "damage": item.damage,
        "path": None if item.path is None else str(item.path),
        "reference": item.reference,
    }
