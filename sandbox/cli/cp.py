"""`sandbox cp`: copy files into a sandbox, or out of it."""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

import click

from sandbox.cli.completing import copy_operand

_STREAM = "-"
_SIZE = re.compile(r"([0-9]{1,15})([kmgt]?)b?", re.IGNORECASE)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


class Operand(NamedTuple):
    """A source or destination: a sandbox and a path inside, or a path of the host."""

    sandbox: str | None
    path: str


@click.command()
@click.option("-L", "--follow-link", "follow", is_flag=True, help="If SRC is a symbolic link, copy its target.")
@click.option("-q", "--quiet", is_flag=True, help="Do not print how much was copied.")
@click.option("--max-size", default="4g", show_default=True, metavar="SIZE", help="Copy at most this much out.")
@click.argument("source", metavar="SRC", shell_complete=copy_operand)
@click.argument("destination", metavar="DST", shell_complete=copy_operand)
def command(follow: bool, quiet: bool, max_size: str, source: str, destination: str) -> None:
    """Copy files between the host and a running sandbox. A path inside is written SANDBOX:PATH.

    The rules are docker's. If DST is an existing directory, SRC is copied into it; otherwise DST is the new name.
    DIR/. stands for the content of a directory. A relative path inside starts at the root. `-` is a tar archive on
    standard input or output. Write ./a:b for a path of the host that contains a colon.

    Into a sandbox: the copy belongs to its user, who must be able to write there: below /tmp, or in a mount.

    Out of a sandbox, nothing is trusted. Refused are absolute names and names with `..`, links that lead out of the
    copy, devices, named pipes, and more than --max-size. Set-user-ID bits are dropped, and links on the host are not
    followed. Existing files are replaced; a failure leaves them unchanged. The copy belongs to the calling user.

    \b
    Examples:
      sandbox cp config.json web:/tmp/
      sandbox cp web:/tmp/report report
      sandbox cp site/. web:/tmp/site
      sandbox cp web:/tmp/data - | tar t
    """
    from sandbox.cli.output import decimal_size, one_line
    from sandbox.errors import SpecError

    bound = parse_size(max_size)
    origin, target = operand(source), operand(destination)
    if origin.sandbox is None and target.sandbox is None:
        raise SpecError("neither SRC nor DST is in a sandbox", "write one of them as SANDBOX:PATH")
    if origin.sandbox is not None and target.sandbox is not None:
        raise SpecError("copying between two sandboxes is not supported", "sandbox cp A:PATH - | sandbox cp - B:PATH")
    if target.sandbox is not None:
        size = _into(target.sandbox, target.path, origin.path, follow=follow)
    else:
        size = _out_of(str(origin.sandbox), origin.path, target.path, follow=follow, bound=bound)
    if not quiet and sys.stderr.isatty():
        click.echo(one_line(f"{decimal_size(size)} copied to {destination}"), err=True)


def _into(name: str, path: str, source: str, *, follow: bool) -> int:
    from sandbox import copying
    from sandbox.cli.output import one_line
    from sandbox.errors import SpecError
    from sandbox.lifecycle.find import get

    if source == _STREAM and sys.stdin.isatty():
        raise SpecError("an archive is not read from a terminal", "tar c FILES | sandbox cp - SANDBOX:PATH")
    sandbox = get(name).sandbox
    if source == _STREAM:
        return copying.extract(sandbox, sys.stdin.fileno(), path)
    return copying.copy_in(sandbox, source, path, follow=follow, note=lambda line: click.echo(one_line(line), err=True))


def _out_of(name: str, path: str, destination: str, *, follow: bool, bound: int) -> int:
    from sandbox import copying
    from sandbox.errors import SpecError
    from sandbox.lifecycle.find import get

    if destination == _STREAM and sys.stdout.isatty():
        raise SpecError("an archive is not written to a terminal", "sandbox cp SANDBOX:PATH - > file.tar")
    sandbox = get(name).sandbox
    bounds = copying.Bounds(size=bound)
    if destination == _STREAM:
        return copying.export(sandbox, path, sys.stdout.fileno(), follow=follow, bounds=bounds)
    return copying.copy_out(sandbox, path, destination, follow=follow, bounds=bounds)


def operand(text: str) -> Operand:
    """Parse SRC or DST: the part before a colon is a sandbox, unless the text starts with a slash or a dot.

    Raises:
        SpecError: it is empty.
    """
    from sandbox.errors import SpecError

    name, colon, path = text.partition(":")
    if not text or (colon and not path):
        raise SpecError(f"{text!r} is not a path", "write SANDBOX:PATH, or a path of the host")
    if not colon or text.startswith(("/", ".")) or "/" in name or not name:
        return Operand(None, text)
    return Operand(name, path)


def parse_size(text: str) -> int:
    """Parse a number and k, m, g or t (powers of 1024) to bytes.

    Raises:
        SpecError: it is not a size.
    """
    from sandbox.errors import SpecError

    match = _SIZE.fullmatch(text)
    if not match:
        raise SpecError(f"--max-size {text[:40]!r} is not a size", "a number and a unit, such as 500m or 4g")
    return int(match[1]) << 10 * _POWERS[match[2].lower()]
