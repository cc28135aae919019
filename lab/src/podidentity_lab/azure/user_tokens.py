"""Users who sign in with their password, and stay signed in by refresh tokens: claims, answers and refusals.

Protocol: learn.microsoft.com/entra/identity-platform/v2-oauth-ropc, .../access-token-claims-reference and
.../id-token-claims-reference; AADSTS numbers: .../reference-error-codes. What MSAL asks for is measured with msal 1.39.
"""

import base64
import json
import secrets
from collections.abc import Mapping

from podidentity_lab.azure import answers
from podidentity_lab.azure.state import Json, Principal, State, User

GRANTS = frozenset({"password", "refresh_token"})
REFRESH_AUDIENCE = "urn:podidentity-lab:refresh"
REFRESH_SECONDS = 90 * 86_400
_GRAPH = "https://graph.microsoft.com"
OPENID_SCOPES = frozenset({"openid", "profile", "email", "offline_access"})
# Applications of Microsoft that are in every tenant: azure-cli, which azure-identity signs in as too, and PowerShell.
_OF_MICROSOFT = {
    "04b07795-8ddb-461a-bbee-02f9e1bf7b46": "Microsoft Azure CLI",
    "1950a258-227b-4e31-a9cf-717495945fc2": "Microsoft Azure PowerShell",
}


def application(state: State, client_id: str) -> Principal | None:
    """Return the application with which a user signs in: one of the tenant, or one of Microsoft's. None for others."""
    if name := _OF_MICROSOFT.get(client_id.lower()):
        return Principal(client_id, client_id, name, application_id=client_id)
    principal = state.principal_of(client_id)
    return principal if principal is not None and principal.application_id else None


def is_public(principal: Principal) -> bool:
    """Whether an application signs users in without a proof of its own: one that has none."""
    return not (principal.secrets or principal.certificates or principal.federated)


def check_password(state: State, form: Mapping[str, str]) -> User:
    """Return the user whose name and password a form has. Refuses with 400 (`invalid_grant`)."""
    name = form.get("username", "")
    lower_name = name.lower()
    user = next((entry for entry in state.users.values() if entry.principal_name.lower() == lower_name), None)
    user = enabled(user)
    if not user.password:
        message = "Invalid or null password: password does not exist in the directory for this user."
        raise _refusal(50056, message)
    if not secrets.compare_digest(user.password.encode(), form.get("password", "").encode()):
        raise _refusal(50126, "Error validating credentials due to invalid username or password.")
    return user


def refreshed(state: State, claims: Json | str) -> User:
    """Return the user of a refresh token, by its claims or what is wrong with it. Refuses with 400."""
    if isinstance(claims, str):
        number, message = (
            (700082, "The refresh token has expired due to inactivity.")
            if claims == "time"
            else (9002313, "Invalid request. Request is malformed or invalid.")
        )
        raise _refusal(number, message)
    return enabled(state.users.get(str(claims["oid"])))


def enabled(user: User | None) -> User:
    """Return the user. Refuses with 400 when there is none, or when the account is disabled."""
    if user is None:
        message = (
            "The user account {EmailHidden} does not exist in the lab directory. To sign into this application, the "
            "account must be added to the directory."
        )
        raise _refusal(50034, message)
    if not user.enabled:
        raise _refusal(50057, "The user account is disabled.")
    return user


def resource_and_permission(scope: str) -> tuple[str, str]:
    """Return the audience that a v2 scope is for, and the permission that it names; Graph's where it names none.

    `https://vault.azure.net/.default openid` is for `https://vault.azure.net`; `User.Read` is one of Graph's.
    """
    target = next((item for item in scope.split() if item.lower() not in OPENID_SCOPES), f"{_GRAPH}/.default")
    audience, separator, permission = target.rpartition("/")
    audience = audience if separator else _GRAPH
    if permission != ".default":
        return audience, permission
    of_graph = "Directory.AccessAsUser.All Group.ReadWrite.All User.ReadWrite.All"
    return audience, of_graph if audience.rstrip("/") == _GRAPH else "user_impersonation"


def access_claims(user: User, client_id: str, permission: str) -> Json:
    """Return the claims of an access token (v1) that say whose it is; there is no `idtyp`, and no `roles`."""
    return {
        "appid": client_id,
        "appidacr": "0",
        "amr": ["pwd"],
        "oid": user.object_id,
        "sub": user.object_id,
        "name": user.display_name,
        "upn": user.principal_name,
        "unique_name": user.principal_name,
        "preferred_username": user.principal_name,
        "scp": permission,
    }


def id_claims(user: User, client_id: str) -> Json:
    """Return an ID token's claims (v2) that say who signed in, and to which application."""
    return {
        "aud": client_id,
        "oid": user.object_id,
        "sub": user.object_id,
        "name": user.display_name,
        "preferred_username": user.principal_name,
        "upn": user.principal_name,
    }


def client_info(user: User, tenant_id: str) -> str:
    """Return MSAL's `client_info`, by which it tells accounts apart."""
    content = json.dumps({"uid": user.object_id, "utid": tenant_id})
    return base64.urlsafe_b64encode(content.encode()).decode().rstrip("=")


def realm(name: str) -> Json:
    """Return what MSAL asks before it sends a password: no other identity provider knows the user."""
    return {
        "ver": "1.0",
        "account_type": "Managed",
        "domain_name": name.rpartition("@")[2],
        "cloud_instance_name": "microsoftonline.com",
        "cloud_audience_urn": "urn:federation:MicrosoftOnline",
    }


def _refusal(number: int, message: str) -> answers.Refusal:
    return answers.entra(400, "invalid_grant", number, message)
