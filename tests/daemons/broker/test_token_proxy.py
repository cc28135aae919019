"""The token proxy on a real TLS socket: who gets which token, and what everybody else is told."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from daemons.broker.harness import (
    PATH,
    READER,
    SCOPE,
    SUBJECT,
    TENANT,
    WRITER,
    Cluster,
    Reply,
    encoded,
    jwt,
    serving,
)
from loops import anyio_backend  # noqa: F401  # all tests here run on uvloop
from podidentity.errors import UnreachableError
from waiting import eventually

EXCHANGE_AUDIENCE = "api://AzureADTokenExchange"
CHALLENGE = '{"access_token":{"nbf":{"essential":true,"value":"1"}}}'
NO_CREDENTIAL = Reply(401, {"error": "invalid_client", "error_description": "AADSTS700213: No matching record."})


async def test_a_granted_pod_gets_a_token() -> None:
    """Entra ID is asked with the broker's own subject, for the identity that the pod named."""
    async with serving() as broker:
        broker.cluster.grant("shop/cart")
        answer = await broker.ask(broker.cluster.token("shop/cart"))
        assert answer.status_code == 200
        assert answer.json() == {
            "token_type": "Bearer",
            "expires_in": 86_400,
            "ext_expires_in": 86_400,
            "access_token": f"{READER} {SCOPE} no 1",
        }
        (form,) = broker.entra.forms
        assert form["client_id"] == READER
        assert form["scope"] == SCOPE
        assert form["client_assertion"] == jwt({"iss": "https://cluster", "sub": SUBJECT})
        assert broker.entra.paths == [PATH]


async def test_one_call_for_a_hundred_pods() -> None:
    """Whoever asks while the call is under way waits for it; whoever asks later has the token from the cache."""
    async with serving() as broker:
        broker.cluster.grant("system:serviceaccounts")
        gate = asyncio.Event()
        broker.entra.script.append(Reply(200, gate=gate))
        tokens = [broker.cluster.token(f"team-{number}/app", f"pod-{number}") for number in range(100)]
        asking = [asyncio.create_task(broker.ask(token)) for token in tokens]
        await eventually(lambda: broker.cluster.questions.count("access") == 100, "everybody was reviewed")
        gate.set()
        answers = await asyncio.gather(*asking)
        assert {answer.status_code for answer in answers} == {200}
        assert len(broker.entra.forms) == 1


async def test_without_a_grant_there_is_no_call_to_entra() -> None:
    """Without a grant the answer is 403, which names the service account and what it lacks; Entra ID is not called."""
    async with serving() as broker:
        answer = await broker.ask(broker.cluster.token("shop/cart"))
        assert answer.status_code == 403
        document = answer.json()
        assert document["error"] == "unauthorized_client"
        assert "shop/cart" in document["error_description"]
        assert READER in document["error_description"]
        assert broker.entra.forms == []


async def test_a_grant_to_a_group_of_service_accounts() -> None:
    """Those of its namespace get a token, those of another do not."""
    async with serving() as broker:
        broker.cluster.grant("system:serviceaccounts:shop")
        assert (await broker.ask(broker.cluster.token("shop/cart"))).status_code == 200
        assert (await broker.ask(broker.cluster.token("bank/vault"))).status_code == 403


async def test_a_grant_that_is_withdrawn_ends_within_thirty_seconds() -> None:
    """A withdrawn grant ends within thirty seconds, for tokens in the broker's cache as well."""
    async with serving() as broker:
        broker.cluster.grant("shop/cart")
        token = broker.cluster.token("shop/cart")
        assert (await broker.ask(token)).status_code == 200
        broker.cluster.grants.clear()
        broker.clock.jump(29)
        assert (await broker.ask(token)).status_code == 403


async def test_a_token_of_a_pod_that_was_deleted_ends_within_a_minute() -> None:
    """Within a minute of a pod's deletion its token is refused, since the API server no longer accepts it."""
    async with serving() as broker:
        broker.cluster.grant("shop/cart")
        token = broker.cluster.token("shop/cart")
        assert (await broker.ask(token)).status_code == 200
        broker.cluster.tokens.clear()
        broker.clock.jump(59)
        assert (await broker.ask(token)).status_code == 401


async def test_tokens_that_prove_nothing() -> None:
    """Of another audience, unknown to the cluster, expired, unsigned: 401, and Entra ID is never asked."""
    async with serving() as broker:
        broker.cluster.grant("system:serviceaccounts")
        now = broker.clock.wall()
        good = {"iss": "https://cluster", "aud": ["api://AKSIdentityBinding"], "exp": now + 60}
        for token in (
            broker.cluster.token("shop/cart", audience=EXCHANGE_AUDIENCE),
            broker.cluster.token("shop/cart", audience="https://kubernetes.default.svc"),
            broker.cluster.token("shop/cart", life_seconds=0),
            jwt(good),
            jwt(good | {"iss": "https://elsewhere"}),
            jwt(good, {"alg": "none"}),
            jwt(good, {"alg": "HS256"}),
            broker.cluster.token("shop/cart", pod=""),
        ):
            answer = await broker.ask(token)
            assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client"), answer.text
        assert broker.entra.forms == []


async def test_requests_that_are_wrong() -> None:
    """Each is refused as JSON, with the status that says what is wrong."""
    async with serving() as broker:
        broker.cluster.grant("shop/cart")
        token = broker.cluster.token("shop/cart")
        headers = {"Content-Type": "application/x-www-form-urlencoded"}

        async def status(method: str, path: str, content: bytes = b"", **extra: str) -> int:
            answer = await broker.client.request(method, path, content=content, headers=headers | extra)
            assert answer.json()["error_description"]
            return answer.status_code

        body = encoded(token)
        assert await status("POST", "/other/oauth2/v2.0/token", body) == 400
        assert await status("POST", PATH, body + b"&client_assertion=" + token.encode()) == 400
        assert await status("POST", PATH, body + b"&x=" + b"y" * 65_536) == 413
        assert await status("GET", PATH) == 405
        assert await status("POST", "/metadata/identity/oauth2/token", body) == 404
        assert await status("POST", PATH, body, **{"Content-Encoding": "gzip"}) == 415
        assert (await broker.ask(token, scope="https://vault.azure.net")).json()["error"] == "invalid_scope"
        assert (await broker.ask(token, scope=f"{SCOPE} https://a/.default")).status_code == 400
        assert broker.entra.forms == []
        assert (await broker.client.get(PATH)).headers["Allow"] == "POST"


async def test_the_same_by_other_spellings() -> None:
    """`POST /`, a client ID in upper case, scopes that mean nothing: one token for all."""
    async with serving() as broker:
        broker.cluster.grant("shop/cart")
        token = broker.cluster.token("shop/cart")
        answers = [
            await broker.ask(token),
            await broker.ask(token, path="/"),
            await broker.ask(token, READER.upper()),
            await broker.ask(token, scope=f"{SCOPE} openid offline_access profile"),
        ]
        assert {answer.json()["access_token"] for answer in answers} == {f"{READER} {SCOPE} no 1"}


async def test_the_host_header_decides_nothing() -> None:
    """Each SDK sends another Host, and all are served."""
    async with serving() as broker:
        broker.cluster.grant("shop/cart")
        body = encoded(broker.cluster.token("shop/cart"))
        headers = {"Host": "login.microsoftonline.com", "Content-Type": "application/x-www-form-urlencoded"}
        assert (await broker.client.post(PATH, content=body, headers=headers)).status_code == 200


async def test_a_challenge_goes_past_the_cache() -> None:
    """It is passed on, and the token that was challenged is given to nobody any more; capabilities are no challenge."""
    async with serving() as broker:
        broker.cluster.grant("shop/cart")
        token = broker.cluster.token("shop/cart")
        assert (await broker.ask(token)).json()["access_token"].endswith("no 1")
        assert (await broker.ask(token, claims=CHALLENGE)).json()["access_token"].endswith("no 2")
        assert broker.entra.forms[-1]["claims"] == CHALLENGE
        assert (await broker.ask(token)).json()["access_token"].endswith("no 3")
        capabilities = '{"access_token": {"xms_cc": {"values": ["CP1"]}}}'
        assert (await broker.ask(token, claims=capabilities)).json()["access_token"].endswith("no 4")
        assert (await broker.ask(token, claims=capabilities)).json()["access_token"].endswith("no 4")


async def test_discovery() -> None:
    """Both documents name the real authority."""
    async with serving() as broker:
        configuration = await broker.client.get(f"/{TENANT}/v2.0/.well-known/openid-configuration")
        assert configuration.json()["token_endpoint"].endswith(PATH)
        instance = await broker.client.get(
            "/common/discovery/instance", params={"api-version": "1.1", "authorization_endpoint": "x"}
        )
        assert instance.json()["tenant_discovery_endpoint"].endswith("openid-configuration")


@pytest.mark.parametrize(
    ("reply", "status", "pause"),
    [
        (Reply(429, {"error": "slow", "error_description": "Throttled."}, {"Retry-After": "7"}), 429, "7"),
        (Reply(503, {}, {"Retry-After": "3"}), 503, "3"),
        (Reply(503), 503, None),
        (Reply(503, {"error": {"code": "Busy", "message": "not Entra ID's form"}}), 503, None),
    ],
)
async def test_what_entra_answers_is_passed_on(reply: Reply, status: int, pause: str | None) -> None:
    """Entra ID's status and Retry-After are passed on, while a token in the cache is still given."""
    async with serving() as broker:
        broker.cluster.grant("shop/cart")
        broker.cluster.grant("shop/cart", WRITER)
        token = broker.cluster.token("shop/cart")
        assert (await broker.ask(token)).status_code == 200
        broker.entra.script.append(reply)
        answer = await broker.ask(token, WRITER)
        assert (answer.status_code, answer.headers.get("Retry-After")) == (status, pause)
        assert answer.json()["error_description"]
        assert (await broker.ask(token)).status_code == 200


async def test_an_identity_that_is_throttled_holds_up_no_other() -> None:
    """A throttled identity's pause holds for all its resources, and for no other identity."""
    async with serving() as broker:
        for client_id in (READER, WRITER):
            broker.cluster.grant("shop/cart", client_id)
        token = broker.cluster.token("shop/cart")
        broker.entra.script.append(Reply(429, {"error_description": "Throttled."}, {"Retry-After": "7"}))
        assert (await broker.ask(token)).status_code == 429
        assert (await broker.ask(token, scope="https://storage.azure.com/.default")).status_code == 429
        assert len(broker.entra.forms) == 1
        assert (await broker.ask(token, WRITER)).status_code == 200


async def test_a_credential_that_was_just_created_is_waited_for() -> None:
    """A credential that Entra ID does not know yet is tried again: callers see no error, and the log has it once."""
    async with serving() as broker:
        broker.cluster.grant("shop/cart")
        broker.entra.script.extend([NO_CREDENTIAL] * 3)
        assert (await broker.ask(broker.cluster.token("shop/cart"))).status_code == 200
        assert len(broker.entra.forms) == 4
        assert broker.missing == [READER]


async def test_a_credential_that_is_missing_is_waited_for_once() -> None:
    """After one wait for a missing credential, callers are refused at once with what the credential must name."""
    async with serving() as broker:
        broker.cluster.grant("shop/cart")
        broker.entra.script.extend([NO_CREDENTIAL] * 40)
        token = broker.cluster.token("shop/cart", life_seconds=7200)
        answer = await broker.ask(token)
        assert answer.status_code == 401
        assert SUBJECT in answer.json()["error_description"]
        assert answer.json()["error_codes"] == [700213]
        broker.clock.jump(4)
        count = len(broker.entra.forms)
        assert (await broker.ask(token)).status_code == 401
        assert len(broker.entra.forms) == count + 1
        assert broker.missing == [READER]


async def test_a_broker_gives_the_identities_of_its_list_alone() -> None:
    """Other identities are refused, even where Kubernetes would allow them."""
    async with serving(identities=frozenset({WRITER})) as broker:
        broker.cluster.grant("shop/cart")
        answer = await broker.ask(broker.cluster.token("shop/cart"))
        assert answer.status_code == 403
        assert "allowedIdentities" in answer.json()["error_description"]
        assert broker.cluster.questions == ["token"]


async def test_an_api_server_that_fails_is_503() -> None:
    """Nothing is known of the caller then; what was known a moment ago holds for seconds, and counts for nobody."""
    async with serving() as broker:
        broker.cluster.grant("shop/cart")
        token = broker.cluster.token("shop/cart")
        assert (await broker.ask(token)).status_code == 200
        broker.cluster.failure = UnreachableError("no answer", retry_after_seconds=2.0)
        assert (await broker.ask(token)).status_code == 200
        broker.clock.jump(27)  # asked anew since, without an answer: a grant that is withdrawn still ends in time
        assert (await broker.ask(token)).status_code == 200
        broker.clock.jump(2)
        answers = [await broker.ask(token) for _ in range(30)]
        assert {(answer.status_code, answer.headers["Retry-After"]) for answer in answers} == {(503, "2")}
        broker.clock.jump(30)
        answers = [await broker.ask(token) for _ in range(30)]
        assert {answer.status_code for answer in answers} == {503}
        broker.cluster.failure = None
        assert (await broker.ask(token)).status_code == 200


async def test_bad_tokens_have_a_share_of_the_reviews() -> None:
    """An address that sends many tokens which the cluster refuses is itself refused for a moment."""
    async with serving() as broker:
        claims = {"iss": "x", "aud": ["api://AKSIdentityBinding"], "exp": broker.clock.wall() + 60}
        statuses = [(await broker.ask(jwt(claims | {"jti": str(number)}))).status_code for number in range(30)]
        assert statuses == [401] * 20 + [429] * 10
        assert len(broker.cluster.questions) == 20


async def test_identities_that_a_service_account_may_not_use_have_a_share_of_the_reviews() -> None:
    """A service account that asks for many identities it may not use is refused for a moment; others are not."""
    async with serving() as broker:
        broker.cluster.grant("shop/cart")
        token, other = broker.cluster.token("shop/other"), broker.cluster.token("shop/cart")
        client_ids = [f"aaaaaaaa-bbbb-cccc-dddd-{number:012}" for number in range(30)]
        statuses = [(await broker.ask(token, client_id)).status_code for client_id in client_ids]
        assert statuses == [403] * 20 + [429] * 10
        assert broker.cluster.questions.count("access") == 20
        assert (await broker.ask(other)).status_code == 200
        broker.clock.jump(0.1)
        assert (await broker.ask(token, client_ids[-1])).status_code == 403


class SilentCluster(Cluster):
    """An API server that can stop answering; `hang_ups` counts who stopped waiting for it."""

    is_silent = False
    silences = hang_ups = 0

    async def review_token(self, assertion: str, audience: str) -> Mapping[str, Any]:
        """Answer a TokenReview, or never."""
        await self._be_silent()
        return await super().review_token(assertion, audience)

    async def review_access(self, spec: Mapping[str, Any]) -> Mapping[str, Any]:
        """Answer a SubjectAccessReview, or never."""
        await self._be_silent()
        return await super().review_access(spec)

    async def _be_silent(self) -> None:
        if not self.is_silent:
            return
        self.silences += 1
        try:
            await asyncio.Event().wait()
        finally:
            self.hang_ups += 1


@pytest.mark.parametrize("client_id", [READER, WRITER], ids=["bad-token", "no-grant"])
async def test_who_hangs_up_has_cost_a_review(client_id: str) -> None:
    """A client that hangs up before its refusal has used up its share of the reviews all the same."""
    async with serving(cluster_type=SilentCluster) as broker:
        assert isinstance(broker.cluster, SilentCluster)
        known = broker.cluster.token("shop/cart")
        claims = {"iss": "x", "aud": ["api://AKSIdentityBinding"], "exp": broker.clock.wall() + 60}
        broker.cluster.grant("shop/cart")
        assert (await broker.ask(known)).status_code == 200
        broker.cluster.is_silent = True
        for number in range(20):
            token = jwt(claims | {"jti": str(number)}) if client_id == READER else known
            asking = asyncio.create_task(broker.ask(token, f"{client_id[:-2]}{number:02}"))
            await eventually(lambda number=number: broker.cluster.silences == number + 1, "a review")  # type: ignore[misc]
            asking.cancel()
            await asyncio.wait([asking])
            await eventually(lambda number=number: broker.cluster.hang_ups == number + 1, "its end")  # type: ignore[misc]
        broker.cluster.is_silent = False
        token = jwt(claims) if client_id == READER else known
        assert (await broker.ask(token, client_id)).status_code == 429


async def test_challenges_empty_the_cache_once_a_minute() -> None:
    """One pod that is challenged all the time, or says so, does not take the tokens of all others away."""
    async with serving() as broker:
        broker.cluster.grant("shop/cart")
        token = broker.cluster.token("shop/cart")

        async def ask(**fields: str) -> str:
            return str((await broker.ask(token, **fields)).json()["access_token"]).rpartition(" ")[2]

        numbers = [await ask(), await ask(claims=CHALLENGE), await ask(), await ask(claims=CHALLENGE), await ask()]
        assert numbers == ["1", "2", "3", "4", "3"]
        broker.clock.jump(60)
        assert [await ask(claims=CHALLENGE), await ask()] == ["5", "6"]


async def test_challenges_of_a_namespace_have_a_pace() -> None:
    """20 a second: whoever sends more waits, and is refused when that would take too long."""
    async with serving() as broker:
        broker.cluster.grant("shop/cart")
        token = broker.cluster.token("shop/cart")
        start = broker.clock.steady()
        for _ in range(60):
            assert (await broker.ask(token, claims=CHALLENGE)).status_code == 200
        assert broker.clock.steady() - start >= 2


async def test_tokens_that_expire_are_fetched_anew() -> None:
    """A token is fetched anew before it expires, and the old one is given meanwhile."""
    async with serving() as broker:
        broker.cluster.grant("shop/cart")
        assert (await broker.ask(broker.cluster.token("shop/cart"))).json()["expires_in"] == 86_400
        broker.clock.jump(50_000)
        answer = await broker.ask(broker.cluster.token("shop/cart"))
        assert answer.json()["expires_in"] == 36_400
        await eventually(lambda: len(broker.entra.forms) == 2, "the token was fetched anew")
        broker.clock.jump(37_000)
        assert (await broker.ask(broker.cluster.token("shop/cart"))).json()["access_token"].endswith("no 2")


async def test_each_token_is_in_the_audit_log(capfd: pytest.CaptureFixture[str]) -> None:
    """Each token has an audit line with pod, node, identity and Entra ID's trace ID, and without the token."""

    async def test() -> str:
        async with serving(log_format="json") as broker:
            broker.cluster.grant("shop/cart")
            token = broker.cluster.token("shop/cart", "cart-0")
            await broker.ask(token)
            await broker.ask(token)
            await broker.ask(token, WRITER)
            return token

    token = await test()
    text = capfd.readouterr().err
    lines = [json.loads(line) for line in text.splitlines() if '"audit"' in line]
    first, second, third = lines
    assert first["namespace"] == "shop"
    assert first["service_account"] == "cart"
    assert (first["pod"], first["pod_uid"], first["node"]) == ("cart-0", "uid-of-cart-0", "node-1")
    assert (first["client_id"], first["resource"]) == (READER, "https://vault.azure.net")
    assert (first["door"], first["status"], first["cached"], first["trace_id"]) == ("proxy", 200, "false", "trace-1")
    assert (second["cached"], second["trace_id"]) == ("true", "trace-1")
    assert third["status"] == 403
    assert "may not use" in third["why"]
    assert token not in text
    assert "no 1" not in text
