"""An issuer's address, document and keys, judged as Entra ID reads them."""

from typing import Any

import pytest

from podidentity.core.report import issuers
from podidentity.core.report.findings import Finding, Verdict
from podidentity.core.report.issuers import IssuerDocuments

ISSUER = "https://issuer.example/cluster"


def key(kid: str = "k1", **changes: Any) -> dict[str, Any]:
    """Return a key as it is published."""
    return {"kty": "RSA", "alg": "RS256", "use": "sig", "kid": kid, "n": "modulus", "e": "AQAB"} | changes


def documents(*keys: Any, **changes: Any) -> IssuerDocuments:
    """Return a good configuration, and a key set."""
    return IssuerDocuments(issuers.configuration_of(ISSUER) | changes, {"keys": list(keys)})


def problems(findings: tuple[Finding, ...]) -> list[str]:
    """Return the messages of the problems; hold that each says what to do."""
    faults = [finding for finding in findings if finding.verdict == Verdict.PROBLEM]
    assert all(finding.todo for finding in faults)
    return [finding.message for finding in faults]


@pytest.mark.parametrize(
    ("issuer", "words"),
    [
        ("https://kubernetes.default.svc", "is not public"),
        ("https://kubernetes.default.svc.cluster.local", "is not public"),
        ("https://localhost", "is not public"),
        ("https://10.0.0.1", "is not public"),
        ("https://[fd00::1]", "is not public"),
        ("http://issuer.example", "no https address"),
        ("kubernetes/serviceaccount", "no https address"),
        ("https://issuer.example/?a=b", "user, query or fragment"),
        ("https://[issuer", "is no address"),
    ],
)
def test_an_address_that_entra_cannot_reach(issuer: str, words: str) -> None:
    """The finding says what is wrong with the issuer's address, and with which flag to change it."""
    finding = issuers.judge_address(issuer)
    assert finding.verdict == Verdict.PROBLEM
    assert words in finding.message
    assert "--service-account-issuer=https://" in finding.todo


@pytest.mark.parametrize("issuer", [ISSUER, "https://20.1.2.3/x/", "https://oidc.prod-aks.azure.com/tenant/id/"])
def test_a_public_address(issuer: str) -> None:
    """Public https addresses are fine, that of AKS's own issuers among them."""
    assert issuers.judge_address(issuer).verdict == Verdict.OK


def test_all_is_well() -> None:
    """The published documents have exactly what the API server has."""
    good = documents(key())
    findings = issuers.judge(ISSUER, good, good)
    assert [finding.verdict for finding in findings] == [Verdict.OK, Verdict.OK]
    assert "all 1 keys of the API server are published" in findings[-1].message
    assert "1 RSA keys are published: k1" in issuers.judge(ISSUER, good)[-1].message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"issuer": f"{ISSUER}/"}, "they differ by the / at the end"),
        ({"issuer": "https://other.example"}, "must be letter for letter"),
        ({"jwks_uri": "http://issuer.example/keys"}, "must be an https address"),
        ({"response_types_supported": None}, "its response_types_supported lacks id_token"),
        ({"subject_types_supported": []}, "its subject_types_supported lacks public"),
        ({"id_token_signing_alg_values_supported": ["ES256"]}, "lacks RS256"),
        ({"authorization_endpoint": ""}, "its authorization_endpoint is empty"),
    ],
)
def test_a_field_that_entra_refuses(changes: dict[str, Any], words: str) -> None:
    """Each field of the configuration that Entra ID would refuse is named."""
    assert words in " ".join(problems(issuers.judge(ISSUER, documents(key(), **changes))))


@pytest.mark.parametrize(
    ("published", "words"),
    [
        (documents(key("old")), "keys that are not published: k1; Entra ID refuses"),
        (documents(key(n="another")), "under the same ID, but not the API server's: k1"),
        (documents(key(), key("")), "has a key without kid"),
        (documents(key(), key("e1", kty="EC")), "key e1 is no RSA key"),
        (documents(), "the key set has no RSA key"),
        (IssuerDocuments(issuers.configuration_of(ISSUER), {"keys": "none"}), "the key set has no RSA key"),
        (documents("no key"), "a key without kid"),
        (IssuerDocuments(issuers.configuration_of(ISSUER), failure="refused"), "cannot be had: refused"),
        (IssuerDocuments(failure="no such name"), "openid-configuration cannot be had: no such name"),
    ],
)
def test_keys_that_do_not_match(published: IssuerDocuments, words: str) -> None:
    """Published keys that differ from the API server's are a problem: Entra ID would refuse its tokens."""
    assert words in " ".join(problems(issuers.judge(ISSUER, published, documents(key()))))


def test_a_key_that_the_cluster_does_not_have_is_worth_knowing() -> None:
    """A key that only the issuer publishes is a note: the next key is published before it signs."""
    findings = issuers.judge(ISSUER, documents(key(), key("next")), documents(key()))
    assert problems(findings) == []
    assert [finding.message for finding in findings if finding.verdict == Verdict.NOTE] == [
        "published, but not among the API server's keys: next"
    ]


@pytest.mark.parametrize(
    ("own", "words"), [(f"{ISSUER}/", "differs by the / at the end"), ("https://o", "signs as https://o:")]
)
def test_an_issuer_with_which_the_cluster_does_not_sign(own: str, words: str) -> None:
    """The issuer in the cluster's tokens must be the same letter for letter, as Entra ID compares them."""
    finding = issuers.judge_signer(ISSUER, own)
    assert words in finding.message
    assert finding.todo == f"give the API server --service-account-issuer={ISSUER}"
