"""`podidentity lab browse`: a sign-in page of the lab in the host's browser."""

import os
import webbrowser

import click

from podidentity_lab import environment
from podidentity_lab.azure.entra import HOSTS
from podidentity_lab.cli import options


@click.command("browse", short_help="Open a sign-in page of the lab's Azure in your browser.")
@options.OF_THIS_SHELL
@click.option("--no-browser", is_flag=True, help="Print the URL only.")
@click.argument("url")
def browse(*, name: str, no_browser: bool, url: str) -> None:
    """Open a URL of Azure's login host where your browser finds it: on loopback. Any other URL is opened as it is.

    Programs that open a browser to sign somebody in use it by the variable BROWSER.

    Example: BROWSER='podidentity lab browse %s' az login
    """
    base = environment.sign_in_url(options.ready(name))
    page = next((f"{base}{url.removeprefix(host)}" for host in _HOSTS if url.startswith(f"{host}/")), url)
    if no_browser:
        click.echo(page)
        return
    os.environ.pop("BROWSER", None)  # it is this command
    webbrowser.open(page)


_HOSTS = tuple(f"https://{host}" for host in HOSTS)
