"""`podidentity lab open`: the lab in a browser."""

import contextlib
import os
import sys
import webbrowser

import click

from podidentity_lab import up
from podidentity_lab.cli import options
from podidentity_lab.page import running


@click.command("open", short_help="Show a lab in a browser.")
@options.OF_THIS_SHELL
@click.option("--port", default=0, show_default="any free one", help="Of 127.0.0.1.", type=click.IntRange(0, 65535))
@click.option("--no-browser", is_flag=True, help="Print the URL only.")
def open_page(*, name: str, port: int, no_browser: bool) -> None:
    """Show a lab in a browser: what is there, each request as it travels, faults as switches. Until Ctrl-C.

    The page is served on 127.0.0.1 alone, and the URL holds a secret: whoever has it has the page.

    Example: podidentity lab open --no-browser
    """
    lab = options.ready(name)

    def show(url: str) -> None:
        click.echo(url)
        click.echo("Ctrl-C closes the page; the lab stays.", err=True)
        if not no_browser and _has_display():
            webbrowser.open(url)

    with contextlib.suppress(KeyboardInterrupt), up.signals_interrupt():
        if running.run(lab, port, show):
            click.echo(f"the lab {name!r} is down", err=True)


def _has_display() -> bool:
    return sys.platform == "darwin" or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
