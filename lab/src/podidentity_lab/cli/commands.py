"""`podidentity lab ...`: an Azure and a Kubernetes on this machine. Words and output only; the lab does the rest."""

import dataclasses
import functools
import json
import os
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

from podidentity.errors import LabError
from podidentity_lab import control, directory, keeping, loading, manifest, up
from podidentity_lab import down as ending
from podidentity_lab.cli import browse, fault, identity, log, options, page, shell
from podidentity_lab.data import FILES
from podidentity_lab.directory import DEFAULT_NAME, Directory
from podidentity_lab.environment import Dialect
from podidentity_lab.settings import KubernetesKind, LabSettings

DETACH_MORE_SECONDS = 5.0
POLL_SECONDS = 0.05
ROTATION_SECONDS = 120.0  # a real API server starts again


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
@options.NAME
@click.option("--nodes", default=2, show_default=True, help="How many nodes.")
@click.option("--virtual-machines", default=0, show_default=True, help="How many of them are VMs, not of a scale set.")
@click.option(
    "--network", type=click.Choice(["routed", "bridge"]), default="routed", show_default=True, help="Of pods."
)
@options.KUBERNETES
@click.option("--late", default=0, help="How many nodes wait until `lab join`; with --kubernetes real.")
@click.option("--logs", type=click.Path(path_type=Path), help="A directory for logs that outlives the lab.")
@click.option(
    "--state",
    type=click.Path(path_type=Path, resolve_path=True),
    help="A file of `lab save`: its Azure and its embedded Kubernetes go on.",
)
@options.SEED
@click.option(
    "--listen",
    default="",
    metavar="ADDRESS:PORT",
    help="Of the Kubernetes API; the proxy and the identities are on the next two ports. For containers.",
)
@click.option("--off-azure", is_flag=True, help="Nodes are no Azure machines, and there is no IMDS.")
@click.option("--detach", is_flag=True, help="Return when the lab is ready, and leave it running.")
def start(*, detach: bool, **values: Any) -> None:
    """Start a lab and stay with it until Ctrl-C.

    Example: podidentity lab up --nodes 3 --detach
    """
    settings = LabSettings(**values)
    if detach:
        _detach(settings)
    else:
        click.echo(f"starting the lab {settings.name!r} ...", err=True)
        say_ready = functools.partial(_say_ready, how_to_end="Ctrl-C ends it.")
        up.run(settings, say_ready, lambda text: click.echo(text, err=True))
        click.echo(f"the lab {settings.name!r} is down", err=True)


@lab.command("shell")
@options.NAME
@click.option("--nodes", default=2, show_default=True, help="How many nodes.")
@click.option("--virtual-machines", default=0, show_default=True, help="How many of them are VMs, not of a scale set.")
@options.SEED
@options.IDENTITY
@options.DIALECT
def open_shell(*, identity: str | None, dialect: Dialect, **settings: Any) -> None:
    """Open a shell in a lab. Where the lab is not up it is started, and ends with the shell.

    Example: podidentity lab shell --identity reader
    """
    sys.exit(shell.run(LabSettings(**settings), identity, dialect))


lab.add_command(identity.env)
lab.add_command(identity.run)
lab.add_command(fault.fault)
lab.add_command(page.open_page)
lab.add_command(browse.browse)


@lab.command("list")
def list_labs() -> None:
    """List the labs that are up.

    Example: podidentity lab list
    """
    labs = directory.all_labs()
    if not labs:
        click.echo("no lab is up", err=True)
    for lab_directory in labs:
        click.echo(f"{lab_directory.name}\t{'ready' if lab_directory.facts() else 'starting'}\t{lab_directory.path}")


@lab.command(short_help="Show what a lab consists of.")
@options.OF_THIS_SHELL
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(*, name: str, as_json: bool) -> None:
    """Show what a lab consists of, and how many packets of pods reached the metadata service.

    Example: podidentity lab status --json
    """
    facts = control.ask(options.ready(name), "GET", "/status")
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    table = Table("node", "address", "pods", "packets to IMDS", "machine", box=None)
    for node in facts["nodes"]:
        packets = facts["imds_packets"][node["name"]]
        machine = node["machine"].split("/providers/")[-1]
        table.add_row(node["name"], node["address"], str(node["pods"]), str(packets), machine)
    Console(width=200).print(table)
    how = "rootless" if facts["rootless"] else "as root"
    click.echo(
        f"lab {facts['name']}, {how}, {facts['network']} pod network, {facts['memory_kib'] // 1024} MiB of memory"
    )


@lab.command()
@options.OF_THIS_SHELL
@click.argument("node")
@click.option("--taint", "taints", multiple=True, metavar="KEY=VALUE:EFFECT", help="Register the node with it.")
def join(name: str, node: str, taints: tuple[str, ...]) -> None:
    """Let a late node of a real cluster join.

    Example: podidentity lab join node-2 --taint podidentity.io/starting=true:NoSchedule
    """
    query = urlencode([("node", node), *(("taint", taint) for taint in taints)])
    answer = control.ask(options.ready(name), "POST", f"/join?{query}")
    if "error" in answer:
        raise LabError(answer["error"])
    click.echo(f"{node} joins")


@lab.command(short_help="Load images of an archive, for pods to run.")
@options.OF_THIS_SHELL
@click.argument("archive", metavar="IMAGE.tar", type=click.Path(exists=True, path_type=Path))
@click.option("--image", default="", metavar="NAME:TAG", help="Its name, where the archive has none or another.")
def load(name: str, archive: Path, image: str) -> None:
    """Load the images of an archive into a lab: pods that name them run them.

    The archive is one of `docker save`, `podman save` or `buildah push oci-archive:`, or an OCI layout.

    Example: podidentity lab load my-app.tar
    """
    for full_name in loading.load(options.ready(name), archive, image):
        click.echo(f"loaded {full_name}")


@lab.group()
def issuer() -> None:
    """Work with the issuer of the cluster's service account tokens."""


@issuer.command("rotate")
@options.OF_THIS_SHELL
@click.option("--phase", type=click.Choice(["publish", "sign", "withdraw"]), required=True, help="The step to take.")
def rotate_issuer(name: str, phase: str) -> None:
    """Take one step of an exchange of the key that signs service account tokens.

    Publish the next key, sign with it, withdraw the old one: in this order, with time in between for whoever keeps
    published keys, and for tokens of the old key to be renewed. A real API server starts again in each step.

    Example: podidentity lab issuer rotate --phase publish
    """
    answer = control.ask(options.ready(name), "POST", f"/issuer?{urlencode({'phase': phase})}", ROTATION_SECONDS)
    if "error" in answer:
        raise LabError(answer["error"])
    click.echo(f"{phase}: the issuer publishes {', '.join(answer['keys'])}")


@lab.command()
@options.OF_THIS_SHELL
def down(name: str) -> None:
    """Stop a lab and remove all of it. When no lab is up there is nothing to do: exit status 0.

    Example: podidentity lab down
    """
    if not directory.all_labs():
        click.echo("no lab is up", err=True)
        return
    ending.stop(directory.find(name))
    click.echo(f"the lab {name!r} is down")


@lab.command()
@options.OF_THIS_SHELL
@click.argument("file", type=click.Path(path_type=Path))
def save(name: str, file: Path) -> None:
    """Keep a lab in a file: its Azure and the objects of its embedded Kubernetes, with every secret of both.

    `lab up --state FILE` goes on with it. The file is readable by you alone.

    Example: podidentity lab save lab.json
    """
    keeping.save(options.ready(name), file)
    click.echo(f"the lab {name!r} is in {file}; it holds secrets")


@lab.command("manifest")
def show_manifest() -> None:
    """Print the manifest that installs podidentity.

    Example: podidentity lab manifest | kubectl create -f -
    """
    click.echo(manifest.text(), nl=False)


@lab.command("log")
@options.OF_THIS_SHELL
@click.option("--follow", "-f", is_flag=True, help="Go on until the lab ends, or Ctrl-C.")
@click.option(
    "--output",
    "-o",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="For people or programs.",
)
def show_log(*, name: str, follow: bool, output: str) -> None:
    """Show who asked Azure for what, with which identity, and what the answer was.

    IMDS, Entra ID, ARM, Graph, Key Vault and Blob storage; the last 10,000 requests.

    Example: podidentity lab log --follow
    """
    render = log.render_json if output == "json" else log.render_text
    colour = False if os.environ.get("NO_COLOR") else None  # None: on a terminal
    for entry in log.entries(options.ready(name), follow=follow):
        click.echo(render(entry), color=colour)


@lab.command(short_help="Run the walk-through in a fresh lab.")
@options.KUBERNETES
@click.option(
    "--files",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    default=FILES,
    help="A directory with deploy/ and examples/, instead of the package's own manifests.",
)
def demo(kubernetes: KubernetesKind, files: Path) -> None:
    """Run the walk-through in a fresh lab: from an empty vault to a pod that reads its secret.

    Example: podidentity lab demo
    """
    from podidentity_lab.demo import running  # noqa: PLC0415  # it alone needs an HTTP client

    sys.exit(running.run(files, kubernetes))


def _name_option(lab_directory: Directory) -> str:
    return "" if lab_directory.name == DEFAULT_NAME else f" --name {lab_directory.name}"


def _say_ready(lab_directory: Directory, how_to_end: str) -> None:
    click.echo(f"""\
the lab {lab_directory.name!r} is ready; its files are in {lab_directory.path}

  eval "$(podidentity lab env{_name_option(lab_directory)})"         # in another shell; then
  kubectl get nodes
  kubectl create -f deploy/infra/deployment-rbac.yaml
  curl https://management.azure.com/          # the lab's Azure, through the lab's proxy

{how_to_end}""")


def _detach(settings: LabSettings) -> None:
    """Start the same command in a session of its own, and wait until it is ready or has failed.

    A signal meanwhile ends both: nobody would know of the lab that comes up later.
    """
    values = {name.replace("_", "-"): value for name, value in dataclasses.asdict(settings).items()}
    words = [
        f"--{name}" if value is True else f"--{name}={value}"
        for name, value in values.items()
        if value is not None and value is not False
    ]
    command = [
        sys.executable,
        "-m",
        "podidentity",
        "lab",
        "up",
        *words,
    ]
    with tempfile.TemporaryFile("w+") as errors, up.signals_interrupt():  # a pipe would break when we return
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
        )
        try:
            _wait_until_ready(settings, process, errors)
        except BaseException:
            process.terminate()
            process.wait()
            raise


def _wait_until_ready(settings: LabSettings, process: subprocess.Popen[bytes], errors: IO[str]) -> None:
    seconds = up.patience_seconds(settings) + DETACH_MORE_SECONDS
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            errors.seek(0)
            last_line = (errors.read().splitlines() or [""])[-1].removeprefix("error: ")
            raise LabError(last_line or "the lab did not start; run `podidentity lab up` without --detach to see why")
        for lab_directory in directory.all_labs():
            if lab_directory.name == settings.name and lab_directory.facts() and lab_directory.owner() == process.pid:
                _say_ready(lab_directory, f"podidentity lab down{_name_option(lab_directory)}   # ends it")
                return
        time.sleep(POLL_SECONDS)
    raise LabError(f"lab {settings.name!r}: it was not ready after {seconds:g} s; see its logs")
