"""`sandbox completion`: what a shell needs to complete commands and names."""

from __future__ import annotations

import click

from sandbox.cli import cli

VARIABLE = "_SANDBOX_COMPLETE"
"""Where the script puts its question; click answers it before any command runs."""


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the script that completes commands, options, sandboxes, workloads, levels and signals in SHELL.

    Names of sandboxes are offered where they fit: `stop` offers those that run. They need the rights to read the
    state directory, so without root nothing but commands and options is completed.

    \b
    To use it, add to the file that SHELL reads at its start:
      ~/.bashrc                     eval "$(sandbox completion bash)"
      ~/.zshrc, after compinit      eval "$(sandbox completion zsh)"
      ~/.config/fish/config.fish    sandbox completion fish | source

    \b
    Or keep the script, which does not change from day to day:
      sandbox completion bash > /etc/bash_completion.d/sandbox
      sandbox completion zsh > /usr/local/share/zsh/site-functions/_sandbox
      sandbox completion fish > /etc/fish/completions/sandbox.fish
    """
    from click.shell_completion import get_completion_class

    found = get_completion_class(shell)
    if found is None:
        raise click.UsageError(f"click knows no completion for {shell}")
    click.echo(found.source_template % found(cli, {}, "sandbox", VARIABLE).source_vars())
