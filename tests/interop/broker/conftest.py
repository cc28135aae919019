"""One lab with one broker for all tests here, and a program of each SDK, with the environment of one pod."""

import contextlib
import os
import ssl
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest

from interop import clients
from interop.broker.programs import SDKS, Program, Sdk
from interop.broker.stage import SERVER_NAME, Account, Broker, Stage, set_up
from serving import LOOPBACK

CART = "shop/cart"


@dataclass(frozen=True, slots=True)
class World:
    """The lab, its broker, and a pod that may use the identity `reader`; `ca_file` is in the pod's volume."""

    stage: Stage
    broker: Broker
    cart: Account
    reader: str
    ca_file: str

    def variables(self, **changes: str) -> dict[str, str]:
        """Return the environment of the pod's container, with changes."""
        return self.stage.variables(self.broker, self.cart, self.reader, self.ca_file) | changes

    @contextlib.contextmanager
    def asking(self, account: Account, client_id: str) -> Iterator[Callable[[], int]]:
        """Yield a function that asks for a token on one connection and returns the status of the answer."""
        form = {
            "client_id": client_id,
            "client_assertion": Path(account.token_file).read_text(),
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "grant_type": "client_credentials",
            "scope": "https://vault.azure.net/.default",
        }
        url, name = f"https://{LOOPBACK}:{self.broker.port}/", {"sni_hostname": SERVER_NAME}
        tls = ssl.create_default_context(cafile=self.ca_file)
        with httpx2.Client(verify=tls, trust_env=False) as client:
            yield lambda: client.post(url, data=form, extensions=name).status_code


Start = Callable[..., Program]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The lab with a broker that serves."""
    with set_up(tmp_path_factory.mktemp("broker")) as stage:
        broker = stage.start()
        cart, reader = stage.account(CART), stage.identity("reader")
        stage.grant(reader, CART)
        with stage.volume() as ca_file:
            yield World(stage, broker, cart, reader, ca_file)


@pytest.fixture(scope="session")
def start(world: World) -> Iterator[Callable[[Sdk, Mapping[str, str]], Program]]:
    """Start an SDK's program with an environment; it ends with the tests."""
    with contextlib.ExitStack() as ends:

        def start(sdk: Sdk, environment: Mapping[str, str]) -> Program:
            errors = world.stage.folder / f"{sdk.title.replace(' ', '-').replace('/', '-')}.err"
            program = Program(sdk, _directory(sdk), environment, errors)
            ends.callback(program.close)
            return program

        yield start


@pytest.fixture(scope="session")
def programs(world: World, start: Start) -> Mapping[str, Program]:
    """The programs of all SDKs whose tools are here, by the SDKs' titles."""
    return {sdk.title: start(sdk, world.variables()) for sdk in available()}


@pytest.fixture(scope="session")
def misled(world: World, start: Start) -> dict[str, Program]:
    """Programs with a wrong name of the broker in their environment, or none, whose first request is under way."""
    programs = {}
    for sdk in available():
        for name in ("", "other.example"):
            variables = world.variables(AZURE_KUBERNETES_SNI_NAME=name)
            program = start(sdk, {key: value for key, value in variables.items() if value})
            program.begin()
            programs[f"{sdk.title} with server name '{name}'"] = program
    return programs


@pytest.fixture
def identity(world: World, request: pytest.FixtureRequest) -> str:
    """The client ID of a new identity that the pod may use."""
    name = "".join(letter if letter.isalnum() else "-" for letter in request.node.name)
    client_id = world.stage.identity(name[-60:].strip("-"))
    world.stage.grant(client_id, world.cart.key)
    return client_id


def available() -> list[Sdk]:
    """Return the SDKs whose tools are on this machine. Where CI is set, a missing one fails."""
    sdks = []
    for sdk in SDKS:
        try:
            _directory(sdk)
        except clients.MissingToolError as error:
            if os.environ.get("CI"):
                pytest.fail(str(error))
        else:
            sdks.append(sdk)
    return sdks


@pytest.fixture(params=SDKS, ids=lambda sdk: sdk.title.replace(" ", "-"))
def sdk(request: pytest.FixtureRequest) -> Sdk:
    """Each SDK in turn; skipped where its tools are missing."""
    sdk: Sdk = request.param
    request.getfixturevalue("client")(sdk.client)
    return sdk


def _directory(sdk: Sdk) -> Path:
    return clients.installed(sdk.client)
