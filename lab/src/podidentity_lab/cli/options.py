"""What several commands of `podidentity lab` have in common: options, and the lab that they mean."""

from pathlib import Path

import click

from podidentity.errors import LabError
from podidentity_lab import directory
from podidentity_lab.directory import DEFAULT_NAME, Directory

NAME = click.option("--name", default=DEFAULT_NAME, show_default=True, help="Which lab.")
OF_THIS_SHELL = click.option(
    "--name",
    envvar="LAB_NAME",
    default=DEFAULT_NAME,
    show_default=f"the one that `lab env` told of, else {DEFAULT_NAME}",
    help="Which lab.",
)
KUBERNETES = click.option(
    "--kubernetes",
    type=click.Choice(["embedded", "real"]),
    default="embedded",
    show_default=True,
    help="real: kubelets, containerd and runc; needs root.",
)
SEED = click.option(
    "--seed",
    type=click.Path(path_type=Path, resolve_path=True),
    help="A YAML file: identities, vaults, blobs, users, roles and so on that the Azure has from the start.",
)
IDENTITY = click.option("--identity", metavar="NAME", help="Be this managed identity: its name, client ID or ARM ID.")
DIALECT = click.option(
    "--dialect",
    type=click.Choice(["app-service", "arc"]),
    default="app-service",
    show_default=True,
    help="How clients ask for its tokens: as on App Service, or as on a machine of Azure Arc.",
)


def ready(name: str) -> Directory:
    """Return a lab that can be used. Raises `LabError`."""
    lab_directory = directory.find(name)
    if lab_directory.facts() is None:
        raise LabError(f"lab {name!r}: it is still starting; ask again in a moment")
    return lab_directory
