"""MIC's own sign-in: whom it asks for which token, how often, and what it says without one."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any
from urllib.parse import parse_qs

import httpx2
import pytest

from podidentity.azure.cloud_config import CloudConfig
from podidentity.azure.clouds import find_cloud
from podidentity.azure.credentials import ArmCredential
from podidentity.errors import AzureError

SECRET = CloudConfig(find_cloud(""), "tenant", "sub", "group", client_id="mic", client_secret="s3cr3t")
MANAGED = replace(SECRET, client_secret="", managed_identity=True)


class Issuer:
    """Entra ID and IMDS in memory; `answers` are given first, then tokens."""

    def __init__(self) -> None:
        self.asked: list[httpx2.Request] = []
        self.answers: list[httpx2.Response] = []
        self.now = 1000.0

    async def serve(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request."""
        self.asked.append(request)
        await asyncio.sleep(0)
        if self.answers:
            return self.answers.pop(0)
        return httpx2.Response(200, json={"access_token": f"token-{len(self.asked)}", "expires_in": "3600"})


Test = Callable[[ArmCredential, Issuer], Coroutine[Any, Any, None]]


async def run(test: Test, config: CloudConfig = SECRET) -> Issuer:
    """Run a test with a credential."""
    issuer = Issuer()
    async with httpx2.AsyncClient(transport=httpx2.MockTransport(issuer.serve)) as http:
        await test(ArmCredential(config, http, lambda: issuer.now), issuer)
    return issuer


async def ask(credential: ArmCredential, _issuer: Issuer) -> None:
    """Ask once."""
    assert await credential.token() == "token-1"


async def test_a_secret_asks_entra_for_arms_audience() -> None:
    """MIC signs in with the client credentials grant at its cloud's Entra ID, for ARM's audience."""
    (asked,) = (await run(ask)).asked
    assert str(asked.url) == "https://login.microsoftonline.com/tenant/oauth2/v2.0/token"
    form = {name: values[0] for name, values in parse_qs(asked.content.decode()).items()}
    assert form == {
        "grant_type": "client_credentials",
        "client_id": "mic",
        "client_secret": "s3cr3t",
        "scope": "https://management.azure.com//.default",
    }


@pytest.mark.parametrize(
    ("own", "selector"),
    [("", {}), ("c-1", {"client_id": "c-1"}), ("/subscriptions/s/x", {"msi_res_id": "/subscriptions/s/x"})],
)
async def test_a_managed_identity_asks_imds(own: str, selector: dict[str, str]) -> None:
    """The identity is system-assigned, or named by client ID, or by resource ID as in newer azure.json files."""
    (asked,) = (await run(ask, replace(MANAGED, user_assigned_identity=own))).asked
    assert asked.url.host == "169.254.169.254"
    assert asked.headers["Metadata"] == "true"
    expected = {"api-version": "2018-02-01", "resource": "https://management.azure.com/"} | selector
    assert dict(asked.url.params) == expected


async def test_a_hundred_who_ask_at_once_cost_one_call() -> None:
    """A hundred workers that need a token at once share one call to Entra ID."""

    async def test(credential: ArmCredential, _issuer: Issuer) -> None:
        assert set(await asyncio.gather(*(credential.token() for _ in range(100)))) == {"token-1"}

    assert len((await run(test)).asked) == 1


async def test_a_token_is_renewed_before_it_ends() -> None:
    """A token is fetched anew once less than five minutes of it are left."""

    async def test(credential: ArmCredential, issuer: Issuer) -> None:
        await credential.token()
        issuer.now += 3200
        assert await credential.token() == "token-1"
        issuer.now += 200
        assert await credential.token() == "token-2"

    await run(test)


async def test_while_no_new_token_can_be_had_the_old_one_serves() -> None:
    """The old token serves until it expires, and Entra ID is not asked again for each request meanwhile."""

    async def test(credential: ArmCredential, issuer: Issuer) -> None:
        await credential.token()
        issuer.now += 3400
        issuer.answers = [httpx2.Response(503, json={}), httpx2.Response(503, json={})]
        assert [await credential.token() for _ in range(10)] == ["token-1"] * 10
        assert len(issuer.asked) == 2
        issuer.now += 190
        with pytest.raises(AzureError, match="Entra ID refused a token for ARM"):
            await credential.token()

    await run(test)


async def test_a_refusal_is_a_sentence_and_counts_for_a_moment() -> None:
    """The error has Entra ID's words and the file to check, and answers further requests for some seconds."""

    async def test(credential: ArmCredential, issuer: Issuer) -> None:
        told = {"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret."}
        issuer.answers = [httpx2.Response(401, json=told)]
        for _ in range(10):
            with pytest.raises(AzureError, match=r"Entra ID refused.*AADSTS7000215.*check azure\.json"):
                await credential.token()
        assert len(issuer.asked) == 1
        issuer.now += 6
        assert await credential.token() == "token-2"

    await run(test)


async def test_what_was_refused_by_arm_is_not_used_again() -> None:
    """A token that ARM refused is replaced; a newer token stays when the refusal of the older one is reported again."""

    async def test(credential: ArmCredential, _issuer: Issuer) -> None:
        first = await credential.token()
        credential.note_refused(first)
        second = await credential.token()
        credential.note_refused(first)
        assert await credential.token() == second == "token-2"

    await run(test)


async def test_a_new_azure_json_counts_at_once() -> None:
    """A token that is on its way when azure.json changes is not used: one is fetched with the new secret."""

    async def test(credential: ArmCredential, issuer: Issuer) -> None:
        asking = asyncio.create_task(credential.token())
        await asyncio.sleep(0)
        credential.use(replace(SECRET, client_secret="second"))
        assert await asking == "token-2"
        assert b"second" in issuer.asked[1].content

    await run(test)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (httpx2.Response(200, json={}), "answered without a token"),
        (httpx2.Response(200, json={"access_token": None, "expires_in": 3600}), "answered without a token"),
        (httpx2.Response(200, text="<html>"), "answered without a token"),
        (httpx2.Response(502, text="<html>"), "refused a token for ARM: Bad Gateway"),
    ],
)
async def test_what_is_no_token_is_told(answer: httpx2.Response, said: str) -> None:
    """An answer without a token, such as a portal's or a proxy's HTML page, is an error."""

    async def test(credential: ArmCredential, issuer: Issuer) -> None:
        issuer.answers = [answer]
        with pytest.raises(AzureError, match=said):
            await credential.token()

    await run(test)


async def test_no_answer_is_told() -> None:
    """When IMDS cannot be reached, the error names IMDS and what the token was for."""

    async def test(_credential: ArmCredential, issuer: Issuer) -> None:
        def broken(request: httpx2.Request) -> httpx2.Response:
            raise httpx2.ConnectError("no route", request=request)

        async with httpx2.AsyncClient(transport=httpx2.MockTransport(broken)) as http:
            with pytest.raises(AzureError, match="IMDS gave no token for ARM"):
                await ArmCredential(MANAGED, http, lambda: issuer.now).token()

    await run(test)


async def test_a_certificate_that_cannot_be_read_is_told() -> None:
    """The error names the certificate's path and the field that holds it."""

    async def test(credential: ArmCredential, _issuer: Issuer) -> None:
        with pytest.raises(AzureError, match=r"/nowhere\.pfx cannot be used.*aadClientCertPath"):
            await credential.token()

    await run(test, replace(SECRET, client_secret="", certificate_path="/nowhere.pfx"))
