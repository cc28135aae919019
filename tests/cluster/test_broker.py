"""The broker on a real cluster: who gets tokens, what it may do, and which of its changes a load of clients notices.

Runs before NMI is installed. The load (`programs.BROKER_LOAD`) runs from the first test to the last but one, so that
the slow steps of one change pass while another is tested; each test holds that no request has failed up to its end.
"""

import datetime as dt
import itertools
import json
import os
import signal
import time
from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from cluster import brokers
from cluster.brokers import BROKER, CLIENTS, HOME, NAMESPACES, OUTSIDE, SUBJECT, Place, create, token
from cluster.harness import GROUP, LOCATION, Cluster, client_id, until
from cluster.programs import BROKER_LOAD
from cluster.test_federation import ISSUER, forget_issuers_keys, published_keys, rotate_key, sign_in
from interop.broker.programs import SDKS
from podidentity.broker.lifecycle import MISSING_REASON
from podidentity.core.model.federation import EXCHANGE_AUDIENCE
from system.lab.running import Json

NOBODYS = "99999999-0000-4000-8000-000000000000"
"""An identity that nobody is granted."""


@pytest.fixture(scope="module")
def place(cluster: Cluster) -> Iterator[Place]:
    """The broker, installed, and its clients."""
    with brokers.installed(cluster) as one:
        yield one


@pytest.fixture(scope="module")
def replacement(place: Place) -> list[str]:
    """Order a replacement of the CA; the CAs that signed the serving certificates until then."""
    before = place.replica_issuers()
    wish = f"podidentity.io/replace-ca={time.time()}"
    place.cluster.kubectl("annotate", "secret", f"{BROKER}-ca", "-n", HOME, wish)
    return before


@pytest.fixture(scope="module")
def sdks(place: Place) -> Mapping[str, str]:
    """The containers in which Azure's SDKs ask, by the title of the SDK; only SDKs that can be installed here."""
    available = [sdk for sdk in SDKS if brokers.install_client(sdk.client)]
    pod = brokers.sdk_pod(place.cluster, place.client_id, available, [{}, {"client_id": NOBODYS}])
    create(place.cluster, pod)
    return {sdk.title: container["name"] for sdk, container in zip(available, pod["spec"]["containers"], strict=True)}


@pytest.mark.usefixtures("replacement")
def test_fifty_service_accounts_of_25_namespaces_share_one_credential(place: Place) -> None:
    """Fifty service accounts use one identity through one federated credential.

    They are granted it by name or by their namespace's group, with AKS's ClusterRoles; Entra ID is asked four times at
    most.
    """
    pairs = [(namespace, name) for namespace in NAMESPACES for name in brokers.ACCOUNTS]
    answers = [place.ask(token(place.cluster, *pair)) for pair in pairs]
    assert len(answers) == 50
    assert {status for status, _ in answers} == {200}, answers
    assert {client_id(document["access_token"]) for _, document in answers} == {place.client_id}
    # Clients of the load also send their capabilities, for which Entra ID makes another token.
    assert place.exchanges() <= 4


def test_a_replica_is_killed(place: Place) -> None:
    """A replica is killed while it answers: no `get_token` of the 32 clients fails."""
    kill(place, min(place.ready_replicas()))


def kill(place: Place, name: str) -> None:
    """Kill a replica, and wait until it is back and the clients had tokens."""
    for pid in place.cluster.processes("broker", name):
        os.kill(pid, signal.SIGKILL)
    until(lambda: place.ready_replicas().get(name) == 1, f"{name} to be back")
    place.tokens_go_on()


def test_a_service_account_without_a_grant_gets_a_sentence(place: Place) -> None:
    """The answer is 403 and names the service account, the identity and the right that is missing.

    Entra ID is not asked.
    """
    before = place.exchanges()
    status, document = place.ask(token(place.cluster, OUTSIDE, "web"))
    assert (status, document["error"]) == (403, "unauthorized_client")
    for word in (f"{OUTSIDE}/web", place.client_id, "use-managed-identity", "cid.wi.aks.azure.com"):
        assert word in document["error_description"]
    assert place.exchanges() == before


@pytest.mark.parametrize("audience", [EXCHANGE_AUDIENCE, ""], ids=["entra", "api-server"])
def test_a_token_for_somebody_else_is_refused(place: Place, audience: str) -> None:
    """A token of a pod that may use the identity is refused when its audience is not the broker."""
    status, document = place.ask(token(place.cluster, NAMESPACES[1], "web", audience))
    assert (status, document["error"]) == (401, "invalid_client")


@pytest.mark.parametrize("trick", ["key", "none", "HS256", "subject"])
def test_a_forged_token_is_refused(place: Place, trick: str) -> None:
    """A forger has a good token and the public keys.

    He signs with a key of his own, with none, or with the public key as a shared secret, or puts the good signature
    under other claims.
    """
    good = token(place.cluster, NAMESPACES[1], "web")
    claims = jwt.decode(good, options={"verify_signature": False})
    header = {"kid": jwt.get_unverified_header(good)["kid"]}
    foreign = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    content, signature = good.rpartition(".")[::2]
    match trick:
        case "key":
            forged = jwt.encode(claims, foreign, "RS256", header)
        case "none":
            forged = jwt.encode(claims, "", "none", header)
        case "HS256":
            keys = json.loads(place.cluster.kubectl("get", "--raw", "/openid/v1/jwks"))["keys"]
            forged = jwt.encode(claims, keys[0]["n"], "HS256", header)
        case _:
            changed = jwt.encode({**claims, "sub": SUBJECT}, foreign, "RS256", header)
            assert changed.rpartition(".")[0] != content
            forged = f"{changed.rpartition('.')[0]}.{signature}"
    assert place.ask(good)[0] == 200
    status, document = place.ask(forged)
    assert (status, document["error"]) == (401, "invalid_client")


@pytest.mark.usefixtures("sdks")  # they start while this waits
def test_what_is_withdrawn_ends_in_time(place: Place) -> None:
    """A grant that is deleted ends within 30 s, and the token of a pod that is deleted within 60 s.

    Both were used a moment before, so that the broker has them in its cache.
    """
    cluster = place.cluster
    granted = token(cluster, NAMESPACES[0], "web")
    deleted = token(cluster, NAMESPACES[2], "web")
    assert [place.ask(value)[0] for value in (granted, deleted)] == [200, 200]
    cluster.kubectl("delete", "clusterrolebinding", "identity-brokered-single")
    cluster.kubectl("delete", "pod", "web", "-n", NAMESPACES[2], "--grace-period=0", "--force")
    start = time.monotonic()
    ends: dict[int, float] = {}

    def both_ended() -> bool:
        for status, value in ((403, granted), (401, deleted)):
            if place.ask(value)[0] == status:
                ends.setdefault(status, time.monotonic() - start)
        return len(ends) == 2

    until(both_ended, "the refusal of both tokens", 60)
    assert ends[403] <= 30
    assert ends[401] <= 60


def test_the_broker_may_do_little(place: Place) -> None:
    """The broker may ask for reviews and write its own CA and its bundles.

    It may read no pods or other Secrets, and make no tokens.
    """
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{HOME}", "system:authenticated"]

    def can(verb: str, resource: str, namespace: str = "", **more: str) -> bool:
        kind, _, api_group = resource.partition(".")
        attributes = {"verb": verb, "resource": kind, "group": api_group, "namespace": namespace, **more}
        spec = {"user": SUBJECT, "groups": groups, "resourceAttributes": attributes}
        reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
        answer = place.cluster.api.post(reviews, json={"spec": spec}).raise_for_status().json()
        return bool(answer["status"]["allowed"])

    assert can("create", "tokenreviews.authentication.k8s.io")
    assert can("create", "subjectaccessreviews.authorization.k8s.io")
    assert can("create", "events", HOME)
    for kind, verb in itertools.product(("secrets", "configmaps"), ("get", "patch")):
        assert can(verb, kind, HOME, name=f"{BROKER}-ca")
    for namespace in (HOME, CLIENTS, "kube-system", ""):
        assert not can("create", "serviceaccounts", namespace, subresource="token")
        for verb in ("get", "list", "watch"):
            assert not can(verb, "secrets", namespace)
        assert not can("get", "pods", namespace)
        assert not can("impersonate", "serviceaccounts", namespace)
        assert not can("use-managed-identity", "any.cid.wi.aks.azure.com", namespace)
    assert can("patch", "configmaps", CLIENTS, name=f"{BROKER}-ca")
    assert not can("patch", "configmaps", CLIENTS)
    assert not can("create", "secrets", CLIENTS)
    assert not can("create", "configmaps", CLIENTS)


def test_a_credential_that_is_missing_is_an_event(place: Place) -> None:
    """While a federated credential is missing there is one event that says what it must name.

    Once it exists, the pod gets its token.
    """
    cluster = place.cluster
    identity = cluster.admin.create_identity(GROUP, "late", LOCATION)["properties"]["clientId"]
    create(cluster, *brokers.grant(identity, "identity-late", brokers.group(NAMESPACES[1])))
    # A credential for another subject: without any, Entra ID has another error code, and the broker does not wait.
    cluster.admin.create_federated_credential(GROUP, "late", "other", ISSUER, f"{SUBJECT}-2")
    value = token(cluster, NAMESPACES[1], "web")

    def events() -> list[Json]:
        items: list[Json] = cluster.get("events", "-n", HOME, f"--field-selector=reason={MISSING_REASON}")["items"]
        return items

    with ThreadPoolExecutor(1) as threads:
        answer = threads.submit(place.ask, value, identity)
        until(events, "the event")
        cluster.admin.create_federated_credential(GROUP, "late", BROKER, ISSUER, SUBJECT)
        status, document = answer.result()
    assert (status, client_id(document["access_token"])) == (200, identity)
    (event,) = events()
    subject = event["involvedObject"]
    assert (subject["kind"], subject["namespace"], subject["name"]) == ("ServiceAccount", HOME, BROKER)
    assert all(words in event["message"] for words in (identity, f"issuer {ISSUER}, subject {SUBJECT}"))
    cluster.kubectl("delete", "clusterrole,clusterrolebinding", "identity-late")


@pytest.mark.parametrize("title", [sdk.title for sdk in SDKS])
def test_an_sdk_in_a_pod_gets_a_token(place: Place, sdks: Mapping[str, str], title: str) -> None:
    """With its switch for the proxy on, an SDK gets the pod's token.

    For another identity its exception says what is missing.
    """
    if title not in sdks:
        pytest.skip(f"{title} cannot be had here")
    place.cluster.finished("sdks", CLIENTS)
    text = place.cluster.kubectl("logs", "-n", CLIENTS, "sdks", "-c", sdks[title])
    answer, refusal = (json.loads(line) for line in text.splitlines() if line.startswith("{"))
    assert jwt.decode(answer["token"], options={"verify_signature": False})["appid"] == place.client_id
    assert f"service account {CLIENTS}/default may not use identity {NOBODYS}" in refusal["message"]


def test_the_other_replica_is_killed_and_serves_with_the_next_ca(place: Place, replacement: Sequence[str]) -> None:
    """A restarted replica serves with the new CA, and no `get_token` of clients that trust both CAs fails.

    The ten minutes between publishing the new CA and signing with it are cut short: once the clients' file has both,
    the time of publication in the Secret is set back.
    """
    cluster = place.cluster
    until(lambda: "next.published" in place.authority(), "the successor to be published")
    # A change of the pod makes its kubelet update its volumes at once.
    cluster.kubectl("annotate", "pod", "load", "door", "-n", CLIENTS, "example.com/look=now")
    until(lambda: place.load("/trust") == 2, "both CAs in the clients' file")
    earlier = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=11)
    moment = b64encode(earlier.strftime("%Y-%m-%dT%H:%M:%SZ").encode()).decode()
    change = {"data": {"next.published": moment}}
    cluster.kubectl("patch", "secret", f"{BROKER}-ca", "-n", HOME, "-p", json.dumps(change))
    kill(place, max(place.ready_replicas()))
    assert set(place.replica_issuers()) - set(replacement)


def test_the_cluster_signs_with_another_key(place: Place) -> None:
    """A new key is published first and then signs: no token fails, old or new, at Entra ID or at the broker.

    The lab's only API server restarts to read its keys. On a busy machine that takes longer than the broker may rely on
    its last answer; clients are then told that the cluster cannot be asked.
    """
    cluster = place.cluster
    place.excuses = ("the cluster cannot be asked",)
    old = place.first_token = exchange_token(place)
    rotate_key(cluster, "publish")
    assert sign_in(cluster, place.client_id, old) is None
    place.tokens_go_on()
    forget_issuers_keys(cluster)  # in place of the wait of half an hour
    rotate_key(cluster, "sign")
    new = exchange_token(place)
    kids = [jwt.get_unverified_header(value)["kid"] for value in (old, new)]
    assert kids[0] != kids[1]
    assert [sign_in(cluster, place.client_id, value) for value in (old, new)] == [None, None]
    until(lambda: published_keys(cluster) == set(kids), "both keys in the API server's key set")
    place.tokens_go_on()  # with tokens of the old key: the clients' and the broker's


def exchange_token(place: Place) -> str:
    """Return a token of a replica for Entra ID, such as its kubelet requests."""
    name = next(iter(place.ready_replicas()))
    return token(place.cluster, HOME, name, EXCHANGE_AUDIENCE, BROKER)


def test_ca_and_serving_certificates_are_replaced_under_load(place: Place, replacement: Sequence[str]) -> None:
    """The replica that was not restarted serves with a certificate of the new CA as well, and no client notices."""
    until(lambda: not set(place.replica_issuers()) & set(replacement), "serving certificates of the new CA")
    assert len(set(place.replica_issuers())) == 1
    place.tokens_go_on()


def test_the_clusters_old_signing_key_is_withdrawn_under_load(place: Place) -> None:
    """The old key is withdrawn once no token of it is in use: no token fails.

    Meanwhile Helm upgrades the broker, which keeps its CA.
    """
    cluster = place.cluster
    kid, authority = place.load("/kid"), place.authority()
    replicas = set(place.ready_replicas())
    place.upgrade(loggingFormat="json")
    assert not replicas & set(place.ready_replicas())
    assert place.authority()["ca.crt"] == authority["ca.crt"]
    place.tokens_go_on()  # the broker's own token is of the new key, theirs still of the old one
    create(cluster, brokers.client_pod(cluster, place.client_id, "load-again", BROKER_LOAD))
    place.clients = "load-again"
    until(lambda: place.is_answering("load"), "an answer of the new clients")
    cluster.delete("pod", "load", "door", "-n", CLIENTS)
    assert place.load("/kid") != kid
    rotate_key(cluster, "withdraw")
    tokens = (place.first_token, exchange_token(place))
    assert published_keys(cluster) == {jwt.get_unverified_header(tokens[1])["kid"]}
    assert [sign_in(cluster, place.client_id, value) for value in tokens] == [[7000272], None]
    place.tokens_go_on()


def test_uninstalled_nothing_is_left(place: Place) -> None:
    """Nothing is left of what Helm installed, nor of what the broker wrote: its CA and its bundles."""
    cluster = place.cluster
    place.helm.uninstall(BROKER, timeout=brokers.TIMEOUT_SECONDS)
    kinds = "deployment,service,serviceaccount,secret,configmap,role,rolebinding,networkpolicy,poddisruptionbudget"
    ours = ("default", "kube-root-ca.crt")
    for namespace in (HOME, CLIENTS):
        items = cluster.get(kinds, "-n", namespace)["items"]
        names = [f"{item['kind']} {item['metadata']['name']}" for item in items]
        assert [name for name in names if not name.endswith(ours)] == []
    roles = cluster.get("clusterrole,clusterrolebinding", f"-lapp.kubernetes.io/name={BROKER}")["items"]
    assert roles == []
