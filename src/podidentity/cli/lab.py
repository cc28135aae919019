"""`podidentity lab ...`: an Azure and a Kubernetes on this machine. Words and output only; the lab does the rest."""

import dataclasses
import functools
import json
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlencode

import click
from rich.console import Console
from rich.table import Table

from podidentity.cli import lab_log, lab_shell
from podidentity.errors import LabError
from podidentity.lab import control, directory, keeping, manifest, up
from podidentity.lab import down as ending
from podidentity.lab.directory import DEFAULT_NAME, Directory
from podidentity.lab.environment import variables
from podidentity.lab.settings import KubernetesKind, LabSettings

DETACH_MORE_SECONDS = 5.0
POLL_SECONDS = 0.05

_NAME = click.option("--name", default=DEFAULT_NAME, show_default=True, help="Which lab.")
_OF_THIS_SHELL = click.option(
    "--name",
    envvar="LAB_NAME",
    default=DEFAULT_NAME,
    show_default=f"the one that `lab env` told of, else {DEFAULT_NAME}",
    help="Which lab.",
)
_KUBERNETES = click.option(
    "--kubernetes",
    type=click.Choice(["embedded", "real"]),
    default="embedded",
    show_default=True,
    help="real: kubelets, containerd and runc; needs root.",
)


@click.group(
    help="""Work with an Azure and a Kubernetes on this machine: no account, no cluster, no container engine.

\b
podidentity lab up
eval "$(podidentity lab env)"       # in another shell
kubectl get nodes
"""
)
def lab() -> None:
    """`podidentity lab`: its commands follow."""


@lab.command("up")
@_NAME
@click.option("--nodes", default=2, show_default=True, help="How many nodes.")
@click.option("--virtual-machines", default=0, show_default=True, help="How many of them are VMs, not of a scale set.")
@click.option(
    "--network", type=click.Choice(["routed", "bridge"]), default="routed", show_default=True, help="Of pods."
)
@_KUBERNETES
@click.option("--late", default=0, help="How many nodes wait until `lab join`; with --kubernetes real.")
@click.option("--logs", type=click.Path(path_type=Path), help="A directory for logs that outlives the lab.")
@click.option(
    "--azure", type=click.Path(path_type=Path, resolve_path=True), help="A file of `lab save`: its Azure goes on."
)
@click.option("--detach", is_flag=True, help="Return when the lab is ready, and leave it running.")
def start(detach: bool, **asked: Any) -> None:  # noqa: FBT001  # click's way
    """Start a lab and stay with it until Ctrl-C.

    Example: podidentity lab up --nodes 3 --detach
    """
    settings = LabSettings(**asked)
    if detach:
        _detach(settings)
    else:
        click.echo(f"starting the lab {settings.name!r} ...", err=True)
        say_ready = functools.partial(_say_ready, how_to_end="Ctrl-C ends it.")
        up.run(settings, say_ready, lambda text: click.echo(text, err=True))
        click.echo(f"the lab {settings.name!r} is down", err=True)


@lab.command("shell")
@_NAME
@click.option("--nodes", default=2, show_default=True, help="How many nodes.")
@click.option("--virtual-machines", default=0, show_default=True, help="How many of them are VMs, not of a scale set.")
def open_shell(**asked: Any) -> None:
    """Start a lab and open a shell in it; the lab ends with the shell.

    Example: podidentity lab shell
    """
    sys.exit(lab_shell.run(LabSettings(**asked)))


@lab.command("env")
@_OF_THIS_SHELL
def environment(name: str) -> None:
    """Print what a shell needs to work in a lab.

    Example: eval "$(podidentity lab env)"
    """
    for variable, value in variables(_ready(name)).items():
        click.echo(f"export {variable}={shlex.quote(value)}")


@lab.command("list")
def list_labs() -> None:
    """List the labs that are up."""
    labs = directory.existing()
    if not labs:
        click.echo("no lab is up", err=True)
    for one in labs:
        click.echo(f"{one.name}\t{'ready' if one.facts() else 'starting'}\t{one.path}")


@lab.command(short_help="Tell what a lab consists of.")
@_OF_THIS_SHELL
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(name: str, as_json: bool) -> None:  # noqa: FBT001  # click's way
    """Tell what a lab consists of, and how many packets of pods reached the metadata service."""
    told = control.ask(_ready(name), "GET", "/status")
    if as_json:
        click.echo(json.dumps(told, indent=2))
        return
    table = Table("node", "address", "pods", "packets to IMDS", "machine", box=None)
    for node in told["nodes"]:
        packets = told["imds_packets"][node["name"]]
        machine = node["machine"].split("/providers/")[-1]
        table.add_row(node["name"], node["address"], str(node["pods"]), str(packets), machine)
    Console(width=200).print(table)
    how = "rootless" if told["rootless"] else "as root"
    click.echo(f"lab {told['name']}, {how}, {told['network']} pod network, {told['memory_kib'] // 1024} MiB of memory")


@lab.command()
@_OF_THIS_SHELL
@click.argument("node")
@click.option("--taint", "taints", multiple=True, metavar="KEY=VALUE:EFFECT", help="Register the node with it.")
def join(name: str, node: str, taints: tuple[str, ...]) -> None:
    """Let a late node of a real cluster join.

    Example: podidentity lab join node-2 --taint example.org/starting=true:NoSchedule
    """
    asked = urlencode([("node", node), *(("taint", taint) for taint in taints)])
    told = control.ask(_ready(name), "POST", f"/join?{asked}")
    if "error" in told:
        raise LabError(told["error"])
    click.echo(f"{node} joins")


@lab.command()
@_OF_THIS_SHELL
def down(name: str) -> None:
    """Stop a lab and remove all of it."""
    ending.stop(directory.find(name))
    click.echo(f"the lab {name!r} is down")


@lab.command()
@_OF_THIS_SHELL
@click.argument("file", type=click.Path(path_type=Path))
def save(name: str, file: Path) -> None:
    """Keep a lab's Azure in a file: identities, roles, vaults and every secret. `lab up --azure FILE` goes on with it.

    Example: podidentity lab save azure.json
    """
    keeping.save(_ready(name), file)
    click.echo(f"the Azure of the lab {name!r} is in {file}; it holds secrets")


@lab.command("manifest")
def show_manifest() -> None:
    """Print the manifest that installs podidentity.

    Example: podidentity lab manifest | kubectl create -f -
    """
    click.echo(manifest.text(), nl=False)


@lab.command("log")
@_OF_THIS_SHELL
@click.option("--follow", "-f", is_flag=True, help="Go on until the lab ends, or Ctrl-C.")
@click.option(
    "--output",
    "-o",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="For people or programs.",
)
def show_log(name: str, follow: bool, output: str) -> None:  # noqa: FBT001  # click's way
    """Tell who asked Azure for what, with which identity, and what the answer was.

    IMDS, Entra ID, ARM, Graph and Key Vault; the last 10,000 requests.

    Example: podidentity lab log --follow
    """
    render = lab_log.render_json if output == "json" else lab_log.render_text
    for entry in lab_log.entries(_ready(name), follow=follow):
        click.echo(render(entry))


@lab.command(short_help="Run the walk-through in a fresh lab.")
@_KUBERNETES
def demo(kubernetes: KubernetesKind) -> None:
    """Run the walk-through in a fresh lab: from an empty vault to a pod that reads its secret."""
    from podidentity.lab.demo import running  # noqa: PLC0415  # it alone needs an HTTP client

    sys.exit(running.run(Path(), kubernetes=kubernetes))


def _ready(name: str) -> Directory:
    one = directory.find(name)
    if one.facts() is None:
        raise LabError(f"The lab {name!r} is still starting; ask again in a moment.")
    return one


def _name_option(one: Directory) -> str:
    return "" if one.name == DEFAULT_NAME else f" --name {one.name}"


def _say_ready(one: Directory, how_to_end: str) -> None:
    click.echo(f"""\
the lab {one.name!r} is ready; its files are in {one.path}

  eval "$(podidentity lab env{_name_option(one)})"         # in another shell; then
  kubectl get nodes
  kubectl create -f deploy/infra/deployment-rbac.yaml
  curl https://management.azure.com/          # the lab's Azure, through the lab's proxy

{how_to_end}""")


def _detach(settings: LabSettings) -> None:
    """Start the same command in a session of its own, and wait until it is ready or has failed.

    A signal meanwhile ends both: nobody would know of the lab that comes up later.
    """
    asked = {name.replace("_", "-"): value for name, value in dataclasses.asdict(settings).items() if value is not None}
    command = [
        sys.executable,
        "-m",
        "podidentity",
        "lab",
        "up",
        *(f"--{name}={value}" for name, value in asked.items()),
    ]
    with tempfile.TemporaryFile("w+") as said, up.signals_interrupt():  # a pipe would break when we return
        started = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said, start_new_session=True
        )
        try:
            _wait_until_ready(settings, started, said)
        except BaseException:
            started.terminate()
            started.wait()
            raise


def _wait_until_ready(settings: LabSettings, started: subprocess.Popen[bytes], said: IO[str]) -> None:
    seconds = up.patience_seconds(settings) + DETACH_MORE_SECONDS
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if started.poll() is not None:
            said.seek(0)
            raise LabError((said.read().splitlines() or ["the lab did not start"])[-1].removeprefix("error: "))
        for one in directory.existing():
            if one.name == settings.name and one.facts() and one.owner() == started.pid:
                _say_ready(one, f"podidentity lab down{_name_option(one)}   # ends it")
                return
        time.sleep(POLL_SECONDS)
    raise LabError(f"The lab was not ready after {seconds:g} s.")
