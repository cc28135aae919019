"""Applications: made, given secrets, certificates and federated credentials. What `az ad sp create-for-rbac` needs.

In the lab an application and its service principal are one value: the application's object ID is the service
principal's `application_id`. Called by `graph`.
"""

import base64
import datetime as dt

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity.lab.azure import answers
from podidentity.lab.azure.arm_resources import add_federated, read_federated
from podidentity.lab.azure.state import Json, Principal, State, new_id, new_secret

_YEAR = dt.timedelta(days=365)


async def serve(request: Request, parts: list[str], state: State, now: float) -> Response:
    """Answer one request below /applications; `parts` is what follows."""
    if not parts:
        if request.method == "POST":
            return JSONResponse(document(_make(state, await request.json())), 201)
        condition = request.query_params.get("$filter", "").lower()
        found = [one for one in state.principals.values() if one.application_id and _fits(one, condition)]
        return JSONResponse({"value": [document(one) for one in found]})
    one = _find(state, parts[0])
    match request.method, [part.lower() for part in parts[1:]]:
        case "GET", []:
            return JSONResponse(document(one))
        case "PATCH", []:
            _patch(one, await request.json())
            return Response(status_code=204)
        case "DELETE", []:
            state.principals.pop(one.object_id)
            return Response(status_code=204)
        case "POST", ["addpassword"]:
            return JSONResponse(_add_password(one, await request.json(), now))
        case "POST", ["removepassword"]:
            one.secrets.pop(str((await request.json())["keyId"]), None)
            return Response(status_code=204)
        case method, ["federatedidentitycredentials", *rest]:
            return await _federated(request, one, method, rest)
    raise answers.arm(404, "Request_ResourceNotFound", f"The lab's directory has no '{'/'.join(parts)}'.")


def make_principal(state: State, client_id: str) -> Principal:
    """The service principal of an application: there since the application is."""
    one = state.principal_of(client_id)
    if one is None:
        message = f"The appId '{client_id}' of the service principal does not reference a valid application object."
        raise answers.arm(400, "Request_BadRequest", message)
    return one


def document(one: Principal) -> Json:
    """An application. Secrets are never shown."""
    return {
        "@odata.type": "#microsoft.graph.application",
        "id": one.application_id,
        "appId": one.client_id,
        "displayName": one.name,
        "identifierUris": [],
        "passwordCredentials": [{"keyId": key, "displayName": "rbac"} for key in one.secrets],
        "keyCredentials": [{"type": "AsymmetricX509Cert", "usage": "Verify"} for _ in one.certificates],
    }


def _make(state: State, body: Json) -> Principal:
    made = Principal(new_id(), new_id(), str(body["displayName"]), application_id=new_id())
    state.principals[made.object_id] = made
    _patch(made, body)
    return made


def _patch(one: Principal, body: Json) -> None:
    one.name = str(body.get("displayName") or one.name)
    if "keyCredentials" in body:
        one.certificates = [_pem(str(given["key"])) for given in body["keyCredentials"] if given.get("key")]


def _pem(key: str) -> str:
    """Graph takes a certificate as base64 of DER; az sends that or base64 of PEM."""
    raw = base64.b64decode(key)
    read = x509.load_pem_x509_certificate if raw.startswith(b"-----BEGIN") else x509.load_der_x509_certificate
    return read(raw).public_bytes(serialization.Encoding.PEM).decode()


def _add_password(one: Principal, body: Json, now: float) -> Json:
    key, text = new_id(), new_secret()
    one.secrets[key] = text
    given = body.get("passwordCredential") or {}
    begins = dt.datetime.fromtimestamp(now, dt.UTC)
    times = {"startDateTime": begins.isoformat(), "endDateTime": (begins + _YEAR).isoformat()}
    return {"keyId": key, "secretText": text, "displayName": given.get("displayName"), **times}


def _find(state: State, name: str) -> Principal:
    for one in state.principals.values():
        if one.application_id and name.lower() in {one.application_id.lower(), f"(appid='{one.client_id}')".lower()}:
            return one
    raise answers.arm(404, "Request_ResourceNotFound", f"Resource '{name}' does not exist.")


def _fits(one: Principal, condition: str) -> bool:
    if not condition:
        return True
    return any(f"'{text.lower()}'" in condition for text in (one.client_id, one.name, f"api://{one.client_id}"))


async def _federated(request: Request, one: Principal, method: str, rest: list[str]) -> Response:
    if method == "POST":
        body = await request.json()
        made = read_federated(str(body["name"]), body)
        add_federated(one.federated, made)
        return JSONResponse(_credential(one, made.name), 201)
    if method == "GET":
        shown = [_credential(one, name) for name in one.federated]
        return JSONResponse({"value": shown} if not rest else _credential(one, rest[0]))
    if method == "DELETE":
        one.federated.pop(rest[0], None)
        return Response(status_code=204)
    raise answers.arm(405, "MethodNotAllowed", "Federated credentials take GET, POST and DELETE.")


def _credential(one: Principal, name: str) -> Json:
    found = one.federated.get(name)
    if found is None:
        raise answers.arm(404, "Request_ResourceNotFound", f"There is no federated credential '{name}'.")
    return {
        "id": name,
        "name": name,
        "issuer": found.issuer,
        "subject": found.subject,
        "audiences": found.audiences,
    }
