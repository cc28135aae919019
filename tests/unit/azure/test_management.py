"""Requests to ARM and its operations: what is repeated, what is believed, and which hosts get no token."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

import httpx2
import pytest

import make
from podidentity.azure import management
from podidentity.azure.compute import Machines
from podidentity.azure.management import LONGEST_ANSWER_BYTES, Management
from podidentity.core.model.arm import ArmState
from podidentity.core.target.drift import TargetChange
from podidentity.errors import AzureError
from podidentity.http import retry_after_seconds

BASE = "https://arm.example"
OPERATION = {"Azure-AsyncOperation": f"{BASE}/operations/1", "Retry-After": "0"}
ADD = TargetChange((make.identity_id("reader"),))


class Whoever:
    """A credential that gives numbered tokens."""

    def __init__(self) -> None:
        self.number = 1

    async def token(self) -> str:
        """Return a token."""
        return f"token-{self.number}"

    def note_refused(self, _token: str) -> None:
        """Have the next call return another token."""
        self.number += 1


def answer(status: int = 200, **given: object) -> httpx2.Response:
    """Build an answer."""
    return httpx2.Response(status, **({"json": {}} | given))  # type: ignore[arg-type]  # any field


class Arm:
    """ARM's answers in their order; `asked` has the requests."""

    def __init__(self, *answers: httpx2.Response) -> None:
        self.answers = list(answers)
        self.asked: list[httpx2.Request] = []

    def serve(self, request: httpx2.Request) -> httpx2.Response:
        """Answer one request."""
        self.asked.append(request)
        return self.answers.pop(0)

    async def patch(self) -> ArmState:
        """PATCH a scale set."""
        return await self._with(lambda machines: machines.patch(make.target(), ADD, ArmState()))

    async def get(self) -> ArmState:
        """GET a scale set."""
        return await self._with(lambda machines: machines.get(make.target()))

    async def _with(self, act: Callable[[Machines], Awaitable[ArmState]]) -> ArmState:
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(self.serve)) as http:
            return await act(Machines(Management(BASE, Whoever(), http)))


async def test_a_patch_is_over_when_its_operation_is() -> None:
    """MIC polls the operation until it has succeeded; the client IDs come from the answer to the PATCH."""
    shown = {"identity": {"userAssignedIdentities": {make.resource_id("reader"): {"clientId": "C"}}}}
    doing = answer(json={"status": "InProgress"}, headers={"Retry-After": "0"})
    arm = Arm(answer(json=shown, headers=OPERATION), doing, answer(json={"status": "Succeeded"}))
    assert (await arm.patch()).client_ids == ((make.identity_id("reader"), "c"),)
    assert [request.method for request in arm.asked] == ["PATCH", "GET", "GET"]


async def test_a_patch_without_an_operation_is_over_at_once() -> None:
    """A PATCH whose answer names no operation, or has no body, is over at once."""
    assert await Arm(answer()).patch() == ArmState()
    assert await Arm(answer(204, json=None)).patch() == ArmState()


async def test_an_operation_may_be_named_by_location_alone() -> None:
    """ARM's older form is supported: a Location header, and 202 until the operation is over."""
    where = {"Location": f"{BASE}/operations/1", "Retry-After": "0"}
    arm = Arm(answer(202, headers=where), answer(202, headers={"Retry-After": "0"}), answer(200))
    await arm.patch()
    assert len(arm.asked) == 3


async def test_an_operation_that_failed_says_why() -> None:
    """The error has ARM's code and message; its status is that of the HTTP answer, which is 200."""
    error = {"code": "LinkedAuthorizationFailed", "message": "no permission"}
    with pytest.raises(AzureError, match="no permission") as caught:
        await Arm(answer(headers=OPERATION), answer(json={"status": "Failed", "error": error})).patch()
    assert (caught.value.status, caught.value.code) == (200, "LinkedAuthorizationFailed")
    with pytest.raises(AzureError, match="the operation canceled"):
        await Arm(answer(headers=OPERATION), answer(json={"status": "Canceled"})).patch()


async def test_a_look_that_fails_is_no_end() -> None:
    """A poll that fails with 503 is repeated; an operation that ARM does not know any more (404) is an error."""
    hiccup = answer(503, headers={"Retry-After": "0"})
    arm = Arm(answer(headers=OPERATION), hiccup, answer(json={"status": "Succeeded"}))
    await arm.patch()
    assert len(arm.asked) == 3
    with pytest.raises(AzureError, match="404"):
        await Arm(answer(headers=OPERATION), answer(404)).patch()


@pytest.mark.parametrize(
    "where",
    [
        "https://evil.example/operations/1",
        "http://arm.example/operations/1",
        "nonsense",
        "https://arm.example:x/",
        "https://[/",
    ],
)
async def test_no_token_goes_to_a_foreign_host(where: str) -> None:
    """When the operation's URL is not one of ARM's, the error says so and no request is sent there."""
    arm = Arm(answer(headers={"Azure-AsyncOperation": where}))
    with pytest.raises(AzureError, match="foreign host"):
        await arm.patch()
    assert len(arm.asked) == 1


async def test_a_regional_part_of_arm_is_arm() -> None:
    """The operation's URL may be on a subdomain of ARM's host: regions have endpoints of their own."""
    where = {"Azure-AsyncOperation": "https://westus.arm.example/1", "Retry-After": "0"}
    await Arm(answer(headers=where), answer(json={"status": "Succeeded"})).patch()


async def test_a_token_that_arm_does_not_take_is_replaced_once() -> None:
    """After a 401 the request is repeated with a new token; a second 401 is an error."""
    arm = Arm(answer(401), answer(json={"properties": {"provisioningState": "Updating"}}))
    assert (await arm.get()).is_busy
    assert [request.headers["authorization"] for request in arm.asked] == ["Bearer token-1", "Bearer token-2"]
    with pytest.raises(AzureError) as caught:
        await Arm(answer(401), answer(401)).get()
    assert caught.value.status == 401


async def test_what_does_not_exist_is_gone() -> None:
    """A target that ARM does not find is gone; an answer that is no JSON object is an error."""
    assert (await Arm(answer(404)).get()).is_gone
    with pytest.raises(AzureError, match="without a JSON object"):
        await Arm(answer(text="<html>", json=None)).get()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"json": {"error": {"code": "TooManyRequests", "message": "slow"}}}, "TooManyRequests: slow"),
        ({"json": {"error": None}}, "429"),
        ({"text": "<html>proxy</html>", "json": None}, "proxy"),
    ],
)
async def test_a_refusal_carries_what_arm_said(body: dict[str, object], said: str) -> None:
    """Whatever form the refusal has, the error has its text and its Retry-After."""
    with pytest.raises(AzureError, match=said) as caught:
        await Arm(answer(429, headers={"Retry-After": "7"}, **body)).get()
    assert caught.value.retry_after_seconds == 7


async def test_no_answer_is_an_error_without_status() -> None:
    """The error's sentence has the URL's path without its query, and its status is 0."""

    def broken(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectError("no route", request=request)

    async def run() -> None:
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(broken)) as http:
            await Machines(Management(BASE, Whoever(), http)).get(make.target())

    with pytest.raises(AzureError, match=r"did not answer GET /subscriptions/[^?]*/ss:") as caught:
        await run()
    assert caught.value.status == 0


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("10", 10.0),
        ("0", 0.0),
        ("999999", 3600.0),
        ("Tue, 03 Jun 2025 10:00:30 GMT", 30.0),
        ("Tue, 03 Jun 2025 09:00:00 GMT", 0.0),
        ("soon", None),
        ("", None),
    ],
)
def test_retry_after_is_seconds_or_a_date(text: str, seconds: float | None) -> None:
    """Both forms of RFC 9110, section 10.2.3, are read."""
    now = datetime(2025, 6, 3, 10, 0, 0, tzinfo=UTC)
    assert retry_after_seconds(httpx2.Response(429, headers={"Retry-After": text}), now) == seconds


async def test_a_failed_login_is_nobodys_fault_but_mics() -> None:
    """When MIC's own sign-in fails, the error has status 0.

    With IMDS's 400 it would look like ARM's refusal, and the identities of pods would be set aside.
    """

    class Nobody(Whoever):
        async def token(self) -> str:
            raise AzureError("IMDS refused", status=400, code="invalid_request", retry_after_seconds=3.0)

    async def run() -> None:
        async with httpx2.AsyncClient() as http:
            await Machines(Management(BASE, Nobody(), http)).get(make.target())

    with pytest.raises(AzureError, match="IMDS refused") as caught:
        await run()
    assert (caught.value.status, caught.value.code, caught.value.retry_after_seconds) == (0, "", 3.0)


DEEP = b'{"a":' * 100_000


@pytest.mark.parametrize(
    "body",
    [
        b'{"identity": "none"}',
        b'{"identity": ["a"]}',
        b'{"identity": {"userAssignedIdentities": ["a"]}}',
        b'{"identity": {"userAssignedIdentities": "a"}}',
        b'{"identity": {"userAssignedIdentities": {"%b": "a"}}}' % make.resource_id("reader").encode(),
        b'{"properties": "none"}',
        b"[]",
        b"null",
        b"\xff",
        DEEP,
    ],
)
async def test_a_document_of_another_shape_is_an_error_and_no_guess(body: bytes) -> None:
    """An unexpected document is an AzureError.

    Read as a machine without identities, it would make MIC assign identities again or forget those that are there; any
    other exception would end MIC.
    """
    with pytest.raises(AzureError):
        await Arm(answer(json=None, content=body)).get()


@pytest.mark.parametrize("error", ['"broken"', '["a"]', "1", "{}", '{"code": 7, "message": {"a": 1}}'])
async def test_an_error_of_another_shape_is_an_error(error: str) -> None:
    """An error document of an unexpected shape, of a request or of an operation, is an error all the same."""
    body = f'{{"status": "Failed", "error": {error}}}'.encode()
    for status in (200, 400):
        looks = [answer(status, json=None, content=body, headers={"Retry-After": "0"}) for _ in range(11)]
        arm = Arm(answer(headers=OPERATION), *looks)
        with pytest.raises(AzureError):
            await arm.patch()


@pytest.mark.parametrize("status", [301, 302, 307, 308, 304])
async def test_a_redirect_is_a_refusal(status: int) -> None:
    """A redirect is not followed and raises an error: no token goes to its target."""
    arm = Arm(answer(status, headers={"Location": "https://evil.example/"}))
    with pytest.raises(AzureError):
        await arm.patch()
    assert len(arm.asked) == 1


async def test_an_endless_answer_is_not_read_to_its_end() -> None:
    """An answer that is too long is an error.

    ARM's code and message are cut, since conditions, events and logs show them.
    """
    with pytest.raises(AzureError, match="too long"):
        await Arm(answer(json=None, content=bytes(LONGEST_ANSWER_BYTES + 1))).get()
    told = {"error": {"code": "c" * 10_000, "message": "m" * 100_000}}
    with pytest.raises(AzureError) as caught:
        await Arm(answer(400, json=told)).get()
    assert len(str(caught.value)) < 5000
    assert (len(caught.value.code), len(caught.value.service_message)) == (200, 4000)


async def test_an_endlessly_slow_answer_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer has a time limit as a whole, so that one that arrives byte by byte ends in an error too."""
    monkeypatch.setattr(management, "LONGEST_ANSWER_SECONDS", 0.05)

    async def drops() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.001)

    with pytest.raises(AzureError, match="no whole answer"):
        await Arm(answer(json=None, content=drops())).get()
