"""Our client of federated credentials keeps ARM's pace, on a clock that jumps: no write is lost to 409 or 429."""

import ssl
from collections.abc import Callable
from typing import Any

import httpx2
import pytest

from clocks import JumpingClock
from podidentity.azure.federated import WRITE_SECONDS, IdentityCredentials, Requests
from podidentity.azure.management import Management
from podidentity.core.model.federation import FederatedCredential
from podidentity.errors import AzureError
from podidentity_lab.azure import Azure, AzureSettings
from serving import serving

ARM = "management.azure.com"


class Token:
    """A token for ARM."""

    def __init__(self, text: str) -> None:
        self._text = text

    async def token(self) -> str:
        """Return the token."""
        return self._text

    def note_refused(self, token: str) -> None:
        """Fail: there is no other token."""
        raise AssertionError(token)


class World:
    """A tenant with the identity `one`, on a clock by which our client waits."""

    def __init__(self, port: int, azure: Azure, clock: JumpingClock, http: httpx2.AsyncClient) -> None:
        self.azure, self.clock, self.notices = azure, clock, list[str]()
        owner = azure.settings.owner
        principal = azure.state.principals[owner.object_id]
        token = azure._entra.issue(principal, f"https://{ARM}")
        self.management = Management(f"https://127.0.0.1:{port}", Token(token), http)
        self.identity = (
            f"/subscriptions/{azure.settings.subscription_id}/resourceGroups/rg/providers/"
            "Microsoft.ManagedIdentity/userAssignedIdentities/one"
        )

    def credentials(self) -> IdentityCredentials:
        """Return the identity's credentials."""
        return IdentityCredentials(Requests(self.management, self.notices.append, self.clock), self.identity)


def one(number: int) -> FederatedCredential:
    """Return a credential with a name and subject of its own."""
    return FederatedCredential(
        f"fic-{number}", "https://issuer.example", f"subject-{number}", "api://AzureADTokenExchange"
    )


async def run(test: Callable[[World], Any]) -> World:
    """Run a test in a world with ARM's limits."""
    clock = JumpingClock()
    azure = Azure(AzureSettings(), clock.wall)
    azure.faults.federation_write_seconds = 0
    azure.faults.throttle = True
    trust = ssl.create_default_context(cadata=azure.ca_pem.decode())

    async def name_host(request: httpx2.Request) -> None:
        request.headers["Host"] = ARM
        request.extensions["sni_hostname"] = ARM

    hooks = {"request": [name_host]}
    async with (
        serving(azure.app, azure.tls_context()) as port,
        httpx2.AsyncClient(verify=trust, trust_env=False, event_hooks=hooks) as http,
    ):
        world = World(port, azure, clock, http)
        group = world.identity.partition("/providers")[0]
        for path in (group, world.identity):
            await world.management.send("PUT", f"{world.management.base}{path}?api-version=x", {"location": "l"})
        await test(world)
        return world


async def test_ten_writes_take_their_time_and_none_is_refused() -> None:
    """The client writes once in four seconds, as ARM allows, so that ARM never answers 429."""

    async def write(world: World) -> None:
        credentials = world.credentials()
        start = world.clock.steady()
        for number in range(10):
            await credentials.write(one(number))
        assert world.clock.steady() - start >= 9 * WRITE_SECONDS
        assert len(await credentials.list()) == 10

    assert (await run(write)).notices == []


async def test_a_throttled_write_comes_back_when_arm_says() -> None:
    """Clients that do not know of each other get 429; each waits for ARM's Retry-After and says so."""

    async def write(world: World) -> None:
        for number in range(5):
            await world.credentials().write(one(number))
        assert len(await world.credentials().list()) == 5

    assert "OperationNotAllowed: the next try is in" in (await run(write)).notices[0]


async def test_a_write_that_meets_another_is_repeated() -> None:
    """A write that gets 409 because another is under way is repeated, and the client says so."""

    async def write(world: World) -> None:
        world.azure.faults.throttle = False
        busy = world.azure._services[ARM][1].__self__._federation._busy  # type: ignore[attr-defined]  # a bound method of the lab's
        busy.add(world.identity.lower())

        class EndingClock(JumpingClock):
            """The other write ends while ours waits."""

            async def sleep(self, seconds: float) -> None:
                busy.clear()
                await super().sleep(seconds)

        world.clock = EndingClock()
        await world.credentials().write(one(1))
        assert [item.name for item in await world.credentials().list()] == ["fic-1"]

    assert "Concurrent" in (await run(write)).notices[0]


async def test_a_refusal_is_final() -> None:
    """A write that ARM refuses as invalid is not repeated."""

    async def write(world: World) -> None:
        with pytest.raises(AzureError, match="must be an https URL"):
            await world.credentials().write(FederatedCredential("fic", "http://x", "s", "a"))

    assert (await run(write)).notices == []
