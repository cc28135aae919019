"""The lab for tests of applications: identities, vaults and faults as Python objects. `pytest_plugin` makes fixtures.

Everything goes through the lab's Azure as an administrator's requests would, so its rights are checked as anywhere.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from podidentity.errors import LabError
from podidentity_lab import control, environment, up
from podidentity_lab.demo.admin import Admin
from podidentity_lab.directory import Directory
from podidentity_lab.environment import Identity
from podidentity_lab.settings import LabSettings

__all__ = ["AzureLab", "Faults", "Identity", "Vault", "running"]

Faults = Callable[..., AbstractContextManager[None]]
"""The fixture `faults`: `with faults(imds_statuses=[429]): ...`."""
GROUP = "tests"
LOCATION = "westeurope"


class Vault:
    """A vault that lets in by role. The test itself may do everything in it."""

    def __init__(self, lab: "AzureLab", name: str, resource_id: str) -> None:
        self._lab = lab
        self.name = name
        self.resource_id = resource_id
        self.url = f"https://{name}.vault.azure.net"

    def set(self, name: str, value: str) -> None:
        """Set a secret."""
        self._lab.admin.set_secret(self.name, name, value)

    def grant(self, identity: Identity, role: str = "Key Vault Secrets User") -> None:
        """Give an identity a role on this vault."""
        self._lab.grant(identity, role, self.resource_id)


class AzureLab:
    """A lab that is up. `admin` is its subscription's owner, `directory` has its files."""

    def __init__(self, directory: Directory) -> None:
        self.directory = directory
        self.variables = environment.variables(directory)
        self.admin = Admin(self.variables)
        self._numbers = itertools.count(1)
        self.admin.create_group(GROUP, LOCATION)

    def create_identity(self, name: str | None = None) -> Identity:
        """Make a user-assigned identity without any role; `name` must be new, and is when it is left out."""
        name = name or f"identity-{next(self._numbers)}"
        resource_id = self.admin.create_identity(GROUP, name, LOCATION)["id"]
        return environment.identity(self.directory, resource_id)

    def identity(self, name: str) -> Identity:
        """Find an identity, of the seed for example, by its name, client ID or ARM ID. Raises `LabError`."""
        return environment.identity(self.directory, name)

    def create_vault(self, name: str | None = None) -> Vault:
        """Make a vault with role-based access; `name` must be new, and is when it is left out."""
        name = name or f"vault-{next(self._numbers)}"
        resource_id = self.admin.create_role_vault(GROUP, name, LOCATION)["id"]
        self.admin.assign_role("Key Vault Administrator", self.admin.owner_principal(), resource_id)
        return Vault(self, name, resource_id)

    def grant(self, identity: Identity, role: str, scope: str) -> None:
        """Give an identity one of Azure's built-in roles at `scope`, an ARM ID."""
        self.admin.assign_role(role, identity.principal_id, scope)

    def environment(self, identity: Identity | None = None) -> dict[str, str]:
        """Return the environment in which a program works in this lab, as `identity` if one is given."""
        changes = {} if identity is None else self.changes(identity)
        return environment.merge(os.environ, {**self.variables, **changes}, self.directory)

    def changes(self, identity: Identity) -> dict[str, str | None]:
        """Return what makes a process `identity`; None: the variable must not be set."""
        return environment.identity_variables(self.directory, identity, "app-service")

    def log(self, service: str = "") -> list[dict[str, Any]]:
        """Return what Azure was asked, oldest first, as `podidentity lab log -o json` shows it.

        `service` is imds, entra, arm, graph or keyvault; empty: all.
        """
        entries: list[dict[str, Any]] = control.ask(self.directory, "GET", "/azure/log")
        return [entry for entry in entries if service in ("", entry["service"])]

    @contextlib.contextmanager
    def faults(self, **fields: Any) -> Iterator[None]:
        """Let Azure do wrong what `fields` say while the body runs; `podidentity lab fault show` lists the fields.

        Raises `LabError` for what is no fault.
        """
        current = control.ask(self.directory, "GET", "/azure/faults")
        self._set_faults(fields)
        try:
            yield
        finally:
            self._set_faults({name: current[name] for name in fields})

    def _set_faults(self, fields: dict[str, Any]) -> None:
        answer = control.ask(self.directory, "PATCH", "/azure/faults", content=fields)
        if "error" in answer:
            raise LabError(f"faults: {answer['error']}")


@contextlib.contextmanager
def running(name: str, seed: Path | None = None) -> Iterator[AzureLab]:
    """Have a lab with one node while the body runs, with what the file `seed` says. Raises `PodIdentityError`."""
    with up.running(LabSettings(name, nodes=1, seed=seed), lambda _: None) as lab_process:
        lab = AzureLab(lab_process.directory)
        try:
            yield lab
        finally:
            lab.admin.close()
