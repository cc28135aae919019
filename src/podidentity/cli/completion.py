"""`podidentity completion SHELL`: prints the program with which a shell completes `podidentity`'s words."""

import click
from click.shell_completion import get_completion_class

from podidentity.errors import UsageError

SHELLS = ("bash", "zsh", "fish")
VARIABLE = "_PODIDENTITY_COMPLETE"
_HELP = """Print the program with which a shell completes the words of `podidentity`.

\b
bash: podidentity completion bash > /etc/bash_completion.d/podidentity
zsh:  podidentity completion zsh > "${fpath[1]}/_podidentity"
fish: podidentity completion fish > ~/.config/fish/completions/podidentity.fish

Example: podidentity completion bash
"""


@click.command(help=_HELP, short_help="Print what makes a shell complete these commands.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the completion; see `_HELP`."""
    maker = get_completion_class(shell)
    if maker is None:
        raise UsageError(f'"{shell}" cannot be completed; give one of {", ".join(SHELLS)}')
    click.echo(maker(context.find_root().command, {}, "podidentity", VARIABLE).source())
