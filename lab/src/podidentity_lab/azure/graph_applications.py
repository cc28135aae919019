"""Applications, their secrets, certificates and federated credentials: what `az ad sp create-for-rbac` needs.

In the lab an application and its service principal are one value: the application's object ID is the service
principal's `application_id`.
"""

import base64
import datetime as dt

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from podidentity_lab.azure import answers, federation
from podidentity_lab.azure.state import Json, Principal, State, new_id, new_secret

_YEAR = dt.timedelta(days=365)


async def serve(request: Request, parts: list[str], state: State, now: float, delay_seconds: float) -> Response:
    """Answer one request below /applications; `parts` are the segments behind it.

    Entra ID accepts a new federated credential `delay_seconds` later.
    """
    if not parts:
        if request.method == "POST":
            return JSONResponse(document(_make(state, await request.json())), 201)
        condition = request.query_params.get("$filter", "").lower()
        principals = [
            principal
            for principal in state.principals.values()
            if principal.application_id and _fits(principal, condition)
        ]
        return JSONResponse({"value": [document(principal) for principal in principals]})
    principal = _find(state, parts[0])
    match request.method, [part.lower() for part in parts[1:]]:
        case "GET", []:
            return JSONResponse(document(principal))
        case "PATCH", []:
            _patch(principal, await request.json())
            return Response(status_code=204)
        case "DELETE", []:
            state.principals.pop(principal.object_id)
            return Response(status_code=204)
        case "POST", ["addpassword"]:
            return JSONResponse(_add_password(principal, await request.json(), now))
        case "POST", ["removepassword"]:
            principal.secrets.pop(str((await request.json())["keyId"]), None)
            return Response(status_code=204)
        case _, ["federatedidentitycredentials", *segments]:
            return await _federated(request, principal, segments, now + delay_seconds)
    raise answers.arm(404, "Request_ResourceNotFound", f"The lab's directory has no '{'/'.join(parts)}'.")


def make_principal(state: State, client_id: str) -> Principal:
    """Return the service principal of an application, which exists since the application does. Refuses with 400."""
    principal = state.principal_of(client_id)
    if principal is None:
        message = f"The appId '{client_id}' of the service principal does not reference a valid application object."
        raise answers.arm(400, "Request_BadRequest", message)
    return principal


def document(principal: Principal) -> Json:
    """Return an application as Graph shows it: never with its secrets."""
    return {
        "@odata.type": "#microsoft.graph.application",
        "id": principal.application_id,
        "appId": principal.client_id,
        "displayName": principal.name,
        "identifierUris": [],
        "passwordCredentials": [{"keyId": key, "displayName": "rbac"} for key in principal.secrets],
        "keyCredentials": [{"type": "AsymmetricX509Cert", "usage": "Verify"} for _ in principal.certificates],
    }


def _make(state: State, body: Json) -> Principal:
    principal = Principal(new_id(), new_id(), str(body["displayName"]), application_id=new_id())
    _patch(principal, body)
    state.principals[principal.object_id] = principal
    return principal


def _patch(principal: Principal, body: Json) -> None:
    if "keyCredentials" in body:
        principal.certificates = [
            _pem(str(credential["key"])) for credential in body["keyCredentials"] if credential.get("key")
        ]
    principal.name = str(body.get("displayName") or principal.name)


def _pem(key: str) -> str:
    """Return a certificate as PEM. Graph takes base64 of DER; az sends that or base64 of PEM."""
    raw = base64.b64decode(key)
    read = x509.load_pem_x509_certificate if raw.startswith(b"-----BEGIN") else x509.load_der_x509_certificate
    return read(raw).public_bytes(serialization.Encoding.PEM).decode()


def _add_password(principal: Principal, body: Json, now: float) -> Json:
    key, text = new_id(), new_secret()
    principal.secrets[key] = text
    credential = body.get("passwordCredential") or {}
    begins = dt.datetime.fromtimestamp(now, dt.UTC)
    times = {"startDateTime": begins.isoformat(), "endDateTime": (begins + _YEAR).isoformat()}
    return {"keyId": key, "secretText": text, "displayName": credential.get("displayName"), **times}


def _find(state: State, name: str) -> Principal:
    for principal in state.principals.values():
        if principal.application_id and name.lower() in {
            principal.application_id.lower(),
            f"(appid='{principal.client_id}')".lower(),
        }:
            return principal
    raise answers.arm(404, "Request_ResourceNotFound", f"Resource '{name}' does not exist.")


def _fits(principal: Principal, condition: str) -> bool:
    if not condition:
        return True
    return any(
        f"'{text.lower()}'" in condition
        for text in (principal.client_id, principal.name, f"api://{principal.client_id}")
    )


async def _federated(request: Request, principal: Principal, segments: list[str], effective_at: float) -> Response:
    method = request.method
    if method == "POST":
        body = await request.json()
        credential = federation.parse(str(body["name"]), body, effective_at)
        federation.add(principal.federated, credential)
        return JSONResponse(_credential(principal, credential.name), 201)
    if method == "GET":
        documents = [_credential(principal, name) for name in principal.federated]
        return JSONResponse({"value": documents} if not segments else _credential(principal, segments[0]))
    if method == "DELETE":
        principal.federated.pop(segments[0], None)
        return Response(status_code=204)
    raise answers.arm(405, "MethodNotAllowed", "Federated credentials take GET, POST and DELETE.")


def _credential(principal: Principal, name: str) -> Json:
    credential = principal.federated.get(name)
    if credential is None:
        raise answers.arm(404, "Request_ResourceNotFound", f"There is no federated credential '{name}'.")
    return {
        "id": name,
        "name": name,
        "issuer": credential.issuer,
        "subject": credential.subject,
        "audiences": credential.audiences,
    }
