"""The command line: parse, call, print, exit code. Commands are imported when they are asked for, and not before."""

from __future__ import annotations

import os
import signal
import sys
from importlib import import_module
from typing import NoReturn

import click

from sandbox import __version__
from sandbox.errors import EXIT_ERROR, SandboxError

COMMANDS = {
    "run": "Start a workload behind a wall and follow its logs.",
    "ps": "List sandboxes.",
    "stop": "End a sandbox's workload.",
    "rm": "Remove sandboxes.",
    "prune": "Remove what is not running and what belongs to nobody.",
    "logs": "Print what a sandbox's workload wrote.",
    "exec": "Run a command inside a sandbox.",
    "compare": "Measure a workload at several isolation levels.",
    "report": "Render a comparison's results again.",
    "images": "Build, list and remove the root filesystem in its forms.",
    "workloads": "List the servers, and show how each works.",
    "doctor": "Say what this host can do, and mend what is missing.",
}
"""Name to one line; `sandbox --help` prints these without importing any command."""


class LazyGroup(click.Group):
    """A group whose commands live in modules of their own: `sandbox.cli.NAME` exports `command`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order in which a newcomer needs them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"sandbox.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which name was probably meant."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "sandbox --help lists them"
            raise click.UsageError(f"there is no command {name!r} ({hint})", ctx)
        return super().resolve_command(ctx, args)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sandbox")
def cli() -> None:
    """Run the same server behind every kind of wall, and see what each wall costs and what it stops.

    \b
    Levels, from the thinnest wall to the thickest:
      process    chroot and cgroup limits only: the control
      namespace  the kernel's namespaces, seccomp, no capabilities; no daemon
      container  Docker
      gvisor     Docker with gVisor's kernel in user space
      vm         libvirt and QEMU, with a kernel of its own

    \b
    First steps:
      sandbox doctor                               what this host can do
      sandbox run reactor --isolation namespace    a server behind a wall
      sandbox compare reactor                      every level, measured
    """


def main() -> NoReturn:
    """Entry point: runs a command and turns every outcome into an exit code and at most one clear line."""
    # A closed terminal and a polite kill unwind like Ctrl-C, so that what was being made is undone.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    sys.exit(_run())


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP arrived; `number` is which."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def _interrupt(number: int, _frame: object) -> NoReturn:
    raise Terminated(number)


def _run() -> int:
    try:
        result = cli.main(standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except SandboxError as error:
        click.echo(f"sandbox: {error}", err=True)
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f" (see: {error.ctx.command_path} --help)"
        click.echo(f"sandbox: {error.format_message().rstrip('.')}{hint}", err=True)
        return EXIT_ERROR
    except (KeyboardInterrupt, click.Abort) as stop:
        # click turns every KeyboardInterrupt into its own Abort, and keeps ours as what it came from.
        cause = stop if isinstance(stop, Terminated) else stop.__cause__ or stop.__context__
        return 128 + (cause.number if isinstance(cause, Terminated) else signal.SIGINT)
    except BrokenPipeError:
        # The reader went away (`| head`): nobody is left to tell. Python would complain again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        click.echo(f"sandbox: {error.strerror or error}{where}", err=True)
        return EXIT_ERROR
