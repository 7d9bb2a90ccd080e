"""`sandbox completion`: print the completion script for a shell."""

from __future__ import annotations

import click

from sandbox.cli import cli

VARIABLE = "_SANDBOX_COMPLETE"
"""The environment variable by which the script asks for completions; click replies before any command runs."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that completes commands, options, sandboxes, workloads, levels and signals in SHELL.

    Sandboxes are completed by state: `stop` offers those that run. This reads the state directory, so without root
    only commands and options are completed.

    \b
    To use it, add to the start-up file of SHELL:
      ~/.bashrc                     eval "$(sandbox completion bash)"
      ~/.zshrc, after compinit      eval "$(sandbox completion zsh)"
      ~/.config/fish/config.fish    sandbox completion fish | source

    \b
    Or install the script once:
      sandbox completion bash > /etc/bash_completion.d/sandbox
      sandbox completion zsh > /usr/local/share/zsh/site-functions/_sandbox
      sandbox completion fish > /etc/fish/completions/sandbox.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"click does not support completion in {shell}")
    click.echo(found.source_template % found(cli, {}, "sandbox", VARIABLE).source_vars())
