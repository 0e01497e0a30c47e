"""`specmoe completion`: the script that lets a shell complete commands, options and file names."""

import click
from click.shell_completion import get_completion_class

from specmoe.errors import UsageError


@click.command(name="completion")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script for SHELL, for its start-up file to run.

    \b
    eval "$(specmoe completion bash)"           # in ~/.bashrc
    eval "$(specmoe completion zsh)"            # in ~/.zshrc
    specmoe completion fish > ~/.config/fish/completions/specmoe.fish
    """
    from specmoe.cli.main import cli

    completion = get_completion_class(shell)
    if completion is None:
        raise UsageError(f"there is no completion for {shell!r}; bash, zsh or fish was expected")
    click.echo(completion(cli, {}, "specmoe", "_SPECMOE_COMPLETE").source())
