"""The command line. Each command is in a module of its own, which is imported only when the command is run."""

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
        "run": "Start a workload in a new sandbox.",
        "ps": "List sandboxes.",
        "logs": "Print what a sandbox's workload wrote.",
        "exec": "Run a command inside a sandbox.",
        "cp": "Copy files into a sandbox, or out of it.",
        "inspect": "Show a sandbox's settings, as requested and as in force.",
        "stats": "Show the CPU time, memory and I/O of sandboxes.",
        "events": "Print starts, ends and other events of sandboxes as they happen.",
    },
    "End and remove": {
        "stop": "Stop a sandbox's workload.",
        "kill": "Send a signal to a sandbox's workload.",
        "pause": "Pause all processes in a sandbox.",
        "unpause": "Resume a paused sandbox.",
        "wait": "Wait until a sandbox's workload ends, and print its exit code.",
        "rm": "Remove sandboxes.",
        "prune": "Remove sandboxes that do not run, and leftovers.",
    },
    "Prepare": {
        "warm": "Prepare starts in advance, for `run --warm`.",
    },
    "Measure": {
        "compare": "Measure a workload at several isolation levels.",
        "report": "Render a comparison's results again.",
    },
    "The host": {
        "doctor": "Check which levels this host supports, and install what is missing.",
        "workloads": "List the workloads, and show how each works.",
        "images": "Build, list and remove images of the root filesystem.",
        "completion": "Print a completion script for a shell.",
    },
}
"""The commands with a one-line description each, grouped by purpose, in the order in which a newcomer needs them."""

COMMANDS = {name: text for section in SECTIONS.values() for name, text in section.items()}
"""Descriptions by command; `sandbox --help` prints them without importing any command."""


class LazyGroup(click.Group):
    """A command group that imports each command on use, from the name `command` of the module `sandbox.cli.NAME`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names, in the order of SECTIONS."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(f"sandbox.cli.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command.

        Raises:
            ReaderGoneError: the reader of its output has closed the pipe.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGoneError from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, without importing them."""
        widest = max(map(len, COMMANDS))
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name.ljust(widest), text) for name, text in commands.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; suggest the nearest name if there is none."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-") and not ctx.resilient_parsing:
            import difflib

            near = difflib.get_close_matches(name, COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else "sandbox --help lists all"
            raise click.UsageError(f"there is no command {name!r} ({hint})", ctx)
        return super().resolve_command(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name without importing all commands, as click would."""
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=text) for name, text in COMMANDS.items() if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="sandbox")
def cli() -> None:
    """Run the same server at several isolation levels, and see what each level costs and what it stops.

    \b
    Levels, from the weakest isolation to the strongest:
      process    chroot and cgroup limits only, for comparison
      namespace  kernel namespaces, seccomp, no capabilities; no daemon
      container  Docker
      gvisor     Docker with gVisor's kernel in user space
      vm         libvirt and QEMU, with a kernel of its own

    \b
    First steps:
      sandbox doctor                               check what this host supports
      sandbox run reactor --isolation namespace    start a server
      sandbox ps                                   list the running sandboxes
      sandbox compare reactor                      measure every level

    \b
    SANDBOX is a name, an id, or the beginning of an id.
    Data is written to standard output, progress and messages to standard error.

    \b
    Exit codes, as in docker:
      0      success
      125    an error of sandbox itself; the message says what was wrong
      126    the command inside cannot be executed
      127    the command inside does not exist
      128+n  signal n ended the command, such as 130 for Ctrl-C
      other  the exit code of the command inside
    """


def main() -> NoReturn:
    """Run a command, turn every outcome into an exit code and at most one line on standard error, and exit."""
    arm()
    _open_standard_streams()
    _exit(_run())


def _exit(code: int) -> NoReturn:
    """Exit without finalising the interpreter, which takes longer than many a command.

    Functions registered with atexit are run. If other threads still run, or the output cannot be written, this is a
    normal exit.
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
    """Open standard streams that the caller closed (`>&-`) on /dev/null: other files would take their numbers."""
    for descriptor, name in ((0, "stdin"), (1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest free number, open(2), which is this one
            setattr(sys, name, os.fdopen(descriptor, "r" if descriptor == 0 else "w"))


class ReaderGoneError(Exception):
    """Carries a BrokenPipeError past click, which would turn it into exit code 1."""


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """Raised by SIGTERM or SIGHUP; `number` is the signal."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def interrupt(number: int, _frame: object) -> NoReturn:
    """Handle a signal by raising an exception as Ctrl-C does, so that the command cleans up.

    Only the first signal does that: a second one could interrupt the clean-up at any place. `arm` makes the next one
    count again.

    Raises:
        KeyboardInterrupt: it was SIGINT.
        Terminated: it was another signal.
    """
    for each in _SIGNALS:
        if signal.getsignal(each) is interrupt:
            signal.signal(each, _ignore)
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise Terminated(number)


def arm() -> None:
    """Make the next SIGINT (Ctrl-C), SIGTERM or SIGHUP (a closed terminal) interrupt the command, see `interrupt`.

    Signals that the caller ignores stay ignored, as under nohup(1) or in the background of a shell.
    """
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, interrupt)


def _ignore(_number: int, _frame: object) -> None:
    """Ignore a signal, because an earlier one is being handled."""


def _run() -> int:
    try:
        try:
            result = cli.main(standalone_mode=False)
            sys.stdout.flush()
        finally:
            # The command and its clean-up are finished; a signal must not interrupt the output of its message.
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)
        return result if isinstance(result, int) else 0
    except NotReadyError as error:
        for line in error.output.splitlines():
            click.echo(plain(line.expandtabs()), err=True)
        _print_error(f"{error.message} (its last output is above)" if error.output else str(error))
        return error.exit_code
    except SandboxError as error:
        _print_error(str(error))
        return error.exit_code
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.ClickException as error:
        hint = ""
        if isinstance(error, click.UsageError) and error.ctx is not None:
            hint = f" (see: {error.ctx.command_path} --help)"
        _print_error(error.format_message().rstrip(".") + hint)
        return EXIT_ERROR
    except (KeyboardInterrupt, click.Abort) as stop:
        # click turns every KeyboardInterrupt into its own Abort, with ours as its cause.
        cause = stop if isinstance(stop, Terminated) else stop.__cause__ or stop.__context__
        return 128 + (cause.number if isinstance(cause, Terminated) else signal.SIGINT)
    except (BrokenPipeError, ReaderGoneError):
        # The reader has closed the pipe (`| head`). Without this, Python would report it again at exit.
        null = os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(null, descriptor)
        return 128 + signal.SIGPIPE
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        _print_error(f"{error.strerror or error}{where}")
        return EXIT_ERROR


def _print_error(message: str) -> None:
    """Print one line on standard error, without control characters that a sandbox or an engine may have put into it."""
    click.echo(f"sandbox: {one_line(message)}", err=True)
