"""Whether identities trust a subject: their federated credentials, compared letter by letter as Entra ID does."""

from collections.abc import Iterator
from dataclasses import dataclass

from podidentity.core.model import federation
from podidentity.core.model.arm import IdentityId
from podidentity.core.model.federation import CREDENTIALS_LIMIT, FederatedCredential
from podidentity.core.report.findings import Finding, note, ok, problem, unknown

CHECK = "credential"


@dataclass(frozen=True, slots=True)
class Trust:
    """The credentials of an identity, or of an application where `identity` is None.

    `failure` says why they could not be seen. Without both `identity` and `is_application` it was not found in Azure.
    """

    client_id: str
    identity: IdentityId | None = None
    is_application: bool = False
    credentials: tuple[FederatedCredential, ...] = ()
    failure: str = ""

    @property
    def subject_name(self) -> str:
        """The identity as sentences name it."""
        if self.identity is not None:
            return f"identity {self.identity.name} ({self.client_id})"
        return f"application {self.client_id}" if self.is_application else f"identity {self.client_id}"


def has_trust(trust: Trust, credential: FederatedCredential) -> bool:
    """Whether an identity trusts what `credential` names, letter for letter."""
    return any(
        (item.issuer, item.subject, item.audience) == (credential.issuer, credential.subject, credential.audience)
        for item in trust.credentials
    )


def judge_trust(trust: Trust, credential: FederatedCredential) -> Iterator[Finding]:
    """Yield the findings on an identity that must trust what `credential` names; its name does not matter."""
    if trust.failure:
        yield unknown(CHECK, f"{trust.subject_name}: {trust.failure}", federation.unplaced_command(credential))
        return
    yield from _match(trust, credential)
    count = len(trust.credentials)
    if count >= CREDENTIALS_LIMIT - 1:
        message = f"{trust.subject_name} uses {count} of its {CREDENTIALS_LIMIT} federated credentials"
        yield note(CHECK, message, f"delete those that a broker makes superfluous: {_list_command(trust)}")


def _match(trust: Trust, credential: FederatedCredential) -> Iterator[Finding]:
    similar = [item for item in trust.credentials if _folded(item) == _folded(credential)]
    exact = [item for item in similar if (item.issuer, item.subject) == (credential.issuer, credential.subject)]
    creation = federation.creation_command(credential, trust.client_id, trust.identity)
    if has_trust(trust, credential):
        yield ok(CHECK, f"{trust.subject_name} trusts {credential.subject}")
    elif exact:
        message = (
            f"{trust.subject_name} trusts {credential.subject} for audience {exact[0].audience}, "
            f"and must for {credential.audience}"
        )
        yield problem(CHECK, message, f"{deletion_command(trust, exact[0])}, then {creation}")
    elif similar:
        message = f"{trust.subject_name}: credential {similar[0].name} has {_difference(similar[0], credential)}"
        yield problem(
            CHECK,
            f"{message}; letters count, case and / too",
            f"{deletion_command(trust, similar[0])}, then {creation}",
        )
    elif len(trust.credentials) >= CREDENTIALS_LIMIT:
        message = f"{trust.subject_name} does not trust {credential.subject}, and has no room for it"
        yield problem(CHECK, message, f"delete a credential first ({_list_command(trust)}), then {creation}")
    else:
        message = f"{trust.subject_name} has no federated credential for {credential.subject}"
        yield problem(CHECK, f"{message} of issuer {credential.issuer}", creation)


def _difference(present: FederatedCredential, credential: FederatedCredential) -> str:
    if present.issuer != credential.issuer:
        return f"issuer {present.issuer}, and tokens have {credential.issuer}"
    return f"subject {present.subject}, and tokens have {credential.subject}"


def _folded(credential: FederatedCredential) -> tuple[str, str]:
    return credential.issuer.rstrip("/").lower(), credential.subject.lower()


def deletion_command(trust: Trust, credential: FederatedCredential) -> str:
    """Return the command that deletes a credential of an identity or application."""
    return f"podidentity credential delete {owner_words(trust)} --name {credential.name}"


def _list_command(trust: Trust) -> str:
    return f"podidentity credential list {owner_words(trust)}"


def owner_words(trust: Trust) -> str:
    """Return the options with which `podidentity credential` names an identity or application."""
    return f"--identity {trust.identity}" if trust.identity is not None else f"--application {trust.client_id}"
