"""The command line: parse, call, print, exit code. Commands are imported when they are asked for, and not before."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any, NoReturn

import click

from sandbox import __version__
from sandbox.cli.output import one_line, plain
from sandbox.errors import EXIT_ERROR, NotReadyError, SandboxError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

SECTIONS = {
    "Run and look": {
        "run": "Start a workload behind a wall.",
        "ps": "List sandboxes.",
        "logs": "Print what a sandbox's workload wrote.",
        "exec": "Run a command inside a sandbox.",
        "cp": "Copy files into a sandbox, or out of it.",
        "inspect": "Show all of a sandbox: what was asked, and what is in force.",
        "stats": "Show what sandboxes use.",
        "events": "Print what happens to sandboxes, as it happens.",
    },
    "End and remove": {
        "stop": "End a sandbox's workload, with time to finish.",
        "kill": "Send a signal to a sandbox's workload.",
        "pause": "Hold a sandbox still.",
        "unpause": "Let a paused sandbox go on.",
        "wait": "Wait for a sandbox's end, and print its exit code.",
        "rm": "Remove sandboxes.",
        "prune": "Remove what is not running and what belongs to nobody.",
    },
    "Prepare": {
        "warm": "Prepare starts ahead, for `run --warm`.",
    },
    "Measure": {
        "compare": "Measure a workload at several isolation levels.",
        "report": "Render a comparison's results again.",
    },
    "The host": {
        "doctor": "Say what this host can do, and mend what is missing.",
        "workloads": "List the servers, and show how each works.",
        "images": "Build, list and remove the root filesystem in its forms.",
        "completion": "Print the script that completes commands and names in a shell.",
    },
}
"""Commands by what they are for, in the order in which a newcomer needs them, each with one line."""

COMMANDS = {name: text for section in SECTIONS.values() for name, text in section.items()}
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

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Raises:
            ReaderGoneError: whoever read its output has closed the pipe.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGoneError from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table alone."""
        widest = max(map(len, COMMANDS))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(widest), text) for name, text in commands.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or say which name was probably meant."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "sandbox --help lists them"
            raise click.UsageError(f"there is no command {name!r} ({hint})", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name from the table: click's own way imports them all."""
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)


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
      sandbox ps                                   what runs
      sandbox compare reactor                      every level, measured

    \b
    A SANDBOX is named by its name, its id, or the beginning of its id.
    Data goes to standard output, progress and messages to standard error.

    \b
    Exit codes, as of docker:
      0      done
      125    an error of sandbox itself: one line says what was wrong
      126    the command inside cannot be executed
      127    the command inside does not exist
      128+n  signal n ended the command, such as 130 for Ctrl-C
      else   the code of the command inside
    """


def main() -> NoReturn:
    """Entry point: runs a command and turns every outcome into an exit code and at most one clear line."""
    arm()
    _open_standard_streams()
    _end(_run())


def _end(code: int) -> NoReturn:
    """Exit without taking the interpreter apart: that takes longer than many a command, and the kernel frees it anyhow.

    What was registered for the end is done (atexit). Where other threads still run, or what was printed cannot be
    written, it is left to Python's own way.
    """
    import threading

    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.exit(code)
    if threading.active_count() > 1:
        sys.exit(code)
    atexit._run_exitfuncs()
    os._exit(code)


def _open_standard_streams() -> None:
    """Give what was closed before us (`>&-`) to /dev/null: the next file opened would be taken for it."""
    for descriptor, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free, open(2): this one
            setattr(sys, name, os.fdopen(descriptor, "r" if descriptor == 0 else "w"))


class ReaderGoneError(Exception):
    """A BrokenPipeError on its way past click, which would make an exit with code 1 of it."""


_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP arrived; `number` is which."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def interrupt(number: int, _frame: object) -> NoReturn:
    """A signal handler that unwinds like Ctrl-C, so that what was being made is undone.

    The first signal alone does: a second one would break off the undoing, at a place that nothing foresees. `arm` makes
    the next one count again.

    Raises:
        KeyboardInterrupt: it was SIGINT.
        Terminated
    """
    for each in _ENDS:
        if signal.getsignal(each) is interrupt:
            signal.signal(each, _too_late)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(number)


def arm() -> None:
    """Let the next SIGINT (Ctrl-C), SIGTERM or SIGHUP (a closed terminal) unwind the command.

    What the caller ignores stays ignored: nohup(1), or a shell that runs us in the background.
    """
    for number in _ENDS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def _too_late(_number: int, _frame: object) -> None:
    """The one before is being dealt with."""


def _run() -> int:
    try:
        try:
            result = cli.main(standalone_mode=False)
            sys.stdout.flush()
        finally:
            # All is done or undone; what comes now comes too late, and must not break off the last line.
            for number in _ENDS:
                signal.signal(number, signal.SIG_IGN)
        return result if isinstance(result, int) else 0
    except NotReadyError as error:
        for line in error.output.splitlines():
            click.echo(plain(line.expandtabs()), err=True)
        _say(f"{error.message} (its last output is above)" if error.output else str(error))
        return error.exit_code
    except SandboxError as error:
        _say(str(error))
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f" (see: {error.ctx.command_path} --help)"
        _say(error.format_message().rstrip(".") + hint)
        return EXIT_ERROR
    except (KeyboardInterrupt, click.Abort) as stop:
        # click turns every KeyboardInterrupt into its own Abort, and keeps ours as what it came from.
        cause = stop if isinstance(stop, Terminated) else stop.__cause__ or stop.__context__
        return 128 + (cause.number if isinstance(cause, Terminated) else signal.SIGINT)
    except (BrokenPipeError, ReaderGoneError):
        # The reader went away (`| head`): nobody is left to tell. Python would complain again at exit.
        null = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(null, descriptor)
        return 128 + signal.SIGPIPE
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _say(f"{error.strerror or error}{where}")
        return EXIT_ERROR


def _say(message: str) -> None:
    """One line on standard error; what a sandbox or an engine put into it does not steer the terminal."""
    click.echo(f"sandbox: {one_line(message)}", err=True)
