"""Two replicas and one Secret: clients are served while CAs are created, replaced and retired."""

import asyncio
import base64
import contextlib
import logging
import ssl
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from clocks import JumpingClock
from daemons.certificates.conftest import NAME, NO_CHECK_TIME, SETTINGS, Cluster, Make, pass_time, say
from podidentity.certificates.authority import new_authority, sign_serving
from podidentity.certificates.serving_context import load
from podidentity.core.certificates.replacement import Schedule, Validity
from serving import LOOPBACK
from waiting import eventually

SPREAD_SECONDS = 600.0
DAY_SECONDS = 24 * 3600.0


def roots(bundle: str) -> list[str]:
    """Return each certificate of a bundle as PEM."""
    return [part + "-----END CERTIFICATE-----\n" for part in bundle.split("-----END CERTIFICATE-----\n")[:-1]]


async def test_the_first_start(cluster: Cluster, new_replica: Make) -> None:
    """The first start creates and publishes a CA, and a client that trusts it is served."""
    replica = await new_replica()
    assert not replica.certificates.is_ready
    async with replica.running():
        assert replica.certificates.is_ready
        assert replica.certificates.bundle == cluster.bundle()
        await replica.ask(cluster.bundle())


async def test_two_that_start_at_once_share_one_ca(cluster: Cluster, new_replica: Make) -> None:
    """Two replicas that start at once create one CA, and a client that trusts it is served by both."""
    replicas = [await new_replica() for _ in range(2)]
    async with contextlib.AsyncExitStack() as exits:
        await asyncio.gather(*(exits.enter_async_context(replica.running()) for replica in replicas))
        assert sum(replica.certificates.steps.get("create", 0) for replica in replicas) == 1
        assert len(roots(cluster.bundle())) == 1
        for replica in replicas:
            await replica.ask(cluster.bundle())


async def test_a_ca_is_replaced_and_no_client_notices(cluster: Cluster, new_replica: Make, clock: JumpingClock) -> None:
    """At every step clients are served: with the newest bundle, an earlier one, or only the first CA of either."""
    settings = replace(SETTINGS, schedule=Schedule(authority_seconds=30 * DAY_SECONDS))
    replicas = [await new_replica(settings=settings) for _ in range(2)]
    async with contextlib.AsyncExitStack() as exits:
        for replica in replicas:
            await exits.enter_async_context(replica.running())
        reader, writer = await replicas[0].connect(cluster.bundle())
        first = cluster.bundle()
        bundles = [(clock.wall(), first)]

        async def step(seconds: float) -> None:
            await pass_time(clock, replicas, seconds)
            bundles.append((clock.wall(), cluster.bundle()))
            kubelets = [text for moment, text in bundles if moment >= clock.wall() - SPREAD_SECONDS]
            for text in {*kubelets, bundles[-1][1]}:
                for replica in replicas:
                    await replica.ask(text)
                    await replica.ask(roots(text)[0])

        for _ in range(21):
            await step(DAY_SECONDS)
            if len(roots(cluster.bundle())) == 2:
                break
        for _ in range(30):
            await step(60.0)
        assert roots(cluster.bundle())[1] == first
        for _ in range(5):
            await step(DAY_SECONDS)
        assert first not in cluster.bundle()
        assert len(roots(cluster.bundle())) == 1
        steps = [replica.certificates.steps for replica in replicas]
        for word in ("prepare", "publish", "promote", "retire"):
            assert sum(taken.get(word, 0) for taken in steps) == 1
        await say(reader, writer, b"still open")
        writer.close()


async def test_an_order_replaces_the_ca_at_once(cluster: Cluster, new_replica: Make, clock: JumpingClock) -> None:
    """Each new text of the annotation replaces the CA once, and clients are served all the time."""
    replica = await new_replica()
    async with replica.running():
        for text in ("leaked on Monday", "leaked on Tuesday"):
            before, key = cluster.bundle(), cluster.secret()["data"]["ca.key"]
            cluster.change_secret(lambda secret: annotate(secret, text))  # noqa: B023  # called at once
            promotions = replica.certificates.steps.get("promote", 0)
            for minute in range(25):
                await pass_time(clock, [replica], 60.0)
                await replica.ask(cluster.bundle())
                await replica.ask(before)
                is_spread = minute * 60.0 >= SPREAD_SECONDS
                assert replica.certificates.steps.get("promote", 0) == promotions + is_spread
            assert roots(cluster.bundle())[0] not in before
            assert key not in cluster.secret()["data"].values()
            assert cluster.secret()["metadata"]["annotations"]["podidentity.io/ca-replaced"] == text
        assert replica.certificates.steps["promote"] == 2


async def test_a_replica_that_knows_nothing_of_a_replacement_is_trusted(
    cluster: Cluster, new_replica: Make, clock: JumpingClock
) -> None:
    """A replica that missed a replacement stays trusted, at first even by clients that read only the first CA."""
    replica, late = await new_replica(), await new_replica()
    async with replica.running(), late.running(is_cut_off=True):
        cluster.change_secret(lambda secret: annotate(secret, "leaked"))
        while not replica.certificates.steps.get("promote"):
            await pass_time(clock, [replica], 60.0)
        for _ in range(9):
            await late.ask(roots(cluster.bundle())[0])
            await replica.ask(roots(cluster.bundle())[0])
            await pass_time(clock, [replica], 60.0)
        await pass_time(clock, [replica], 3 * DAY_SECONDS - 25 * 60.0)
        await late.ask(cluster.bundle())


async def test_serving_certificates_are_renewed(cluster: Cluster, new_replica: Make, clock: JumpingClock) -> None:
    """A serving certificate is renewed at two thirds of its life, and clients of the same CA are served."""
    replica = await new_replica()
    async with replica.running():
        before = replica.certificates.serving
        await pass_time(clock, [replica], 1.9 * DAY_SECONDS)
        assert replica.certificates.serving == before
        await pass_time(clock, [replica], 0.2 * DAY_SECONDS)
        assert replica.certificates.signatures == 2
        await replica.ask(cluster.bundle())


def annotate(secret: dict[str, Any], text: str) -> None:
    """Order a replacement of the CA, as an administrator does."""
    secret["metadata"].setdefault("annotations", {})["podidentity.io/replace-ca"] = text


@pytest.mark.parametrize("emptied", [False, True])
async def test_a_secret_that_is_deleted_comes_back(
    cluster: Cluster,
    new_replica: Make,
    clock: JumpingClock,
    caplog: pytest.LogCaptureFixture,
    emptied: bool,  # noqa: FBT001  # a parameter of pytest
) -> None:
    """A Secret that is deleted or emptied is written back with the same CA, the only one that clients trust."""
    replicas = [await new_replica() for _ in range(2)]
    async with replicas[0].running(), replicas[1].running():
        before = cluster.secret()["data"]
        if emptied:
            cluster.change_secret(lambda secret: secret.pop("data"))
        else:
            cluster.kubernetes.storage.delete("secrets", "podidentity-system", "podidentity-broker-ca")
        await pass_time(clock, replicas, 60.0)
        assert cluster.secret()["data"] == before
        assert sum(replica.certificates.restorations for replica in replicas) == 1
        assert "written back" in caplog.text


async def test_an_empty_secret_is_filled(cluster: Cluster, new_replica: Make) -> None:
    """An installation may bring the Secret empty, so that the role need not allow to create Secrets."""
    cluster.kubernetes.storage.create(
        "secrets", {"metadata": {"namespace": "podidentity-system", "name": "podidentity-broker-ca"}}
    )
    rules = (
        {
            "apiGroups": [""],
            "resources": ["secrets"],
            "resourceNames": ["podidentity-broker-ca"],
            "verbs": ["get", "patch"],
        },
        {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["create"]},
        {"apiGroups": [""], "resources": ["configmaps"], "resourceNames": ["podidentity-broker-ca"], "verbs": ["get"]},
    )
    replica = await new_replica(token=cluster.limited_token(*rules))
    async with replica.running():
        await replica.ask(cluster.bundle())


USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=True,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
"""The key usage of azure-workload-identity's CA."""


async def test_azure_workload_identitys_ca_goes_on(cluster: Cluster, new_replica: Make, clock: JumpingClock) -> None:
    """Its RSA CA of ten years (PKCS#1) is used; the serving certificate beside it is not touched."""
    key = rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "azure-workload-identity-ca")])
    start = datetime.fromtimestamp(clock.wall(), UTC) - timedelta(days=30)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + timedelta(days=3650))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(USAGE, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
    values = {"ca.crt": pem, "ca.key": private, "tls.crt": b"its own", "tls.key": b"its own"}
    encoded = {name: base64.b64encode(value).decode() for name, value in values.items()}
    metadata = {"namespace": "podidentity-system", "name": "podidentity-broker-ca"}
    cluster.kubernetes.storage.create("secrets", {"metadata": metadata, "data": encoded})
    replica = await new_replica()
    async with replica.running():
        assert cluster.bundle() == pem.decode()
        await replica.ask(pem.decode())
    assert cluster.secret()["data"] == encoded


FOREIGN = {
    "other keys": {"tls.crt": b"x"},
    "no key": {"ca.crt": b"x"},
    "no PEM": {"ca.crt": b"x", "ca.key": b"y"},
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN.keys())
async def test_what_is_not_ours_is_left_alone(
    cluster: Cluster, new_replica: Make, clock: JumpingClock, data: dict[str, bytes], caplog: pytest.LogCaptureFixture
) -> None:
    """A Secret with anything but a CA is not changed, and one warning names it; once emptied, it is used."""
    encoded = {name: base64.b64encode(value).decode() for name, value in data.items()}
    metadata = {"namespace": "podidentity-system", "name": "podidentity-broker-ca"}
    cluster.kubernetes.storage.create("secrets", {"metadata": metadata, "data": encoded})
    replica = await new_replica()
    start = asyncio.ensure_future(replica.certificates.start())
    for _ in range(3):
        await pass_time(clock, [replica], 60.0)
    assert cluster.secret()["data"] == encoded
    assert not replica.certificates.is_ready
    assert "podidentity-system/podidentity-broker-ca" in replica.certificates.problem
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1
    cluster.change_secret(lambda secret: secret.pop("data"))
    clock.jump(60.0)
    await start
    assert replica.certificates.is_ready
    assert replica.certificates.problem == ""


async def test_what_is_broken_later_does_not_stop_the_server(
    cluster: Cluster, new_replica: Make, clock: JumpingClock
) -> None:
    """If the Secret's key is broken later, the problem is reported and the certificate in use stays."""
    replica = await new_replica()
    async with replica.running():
        cluster.change_secret(lambda secret: secret["data"].update({"ca.key": base64.b64encode(b"z").decode()}))
        await pass_time(clock, [replica], 60.0)
        assert "ca.key" in replica.certificates.problem
        assert replica.certificates.is_ready
        await replica.ask(cluster.bundle())


async def test_the_certificate_names_the_daemon_and_little_else(new_replica: Make, clock: JumpingClock) -> None:
    """The certificate is for a server only, for the daemon's names only, and for a few days only."""
    replica = await new_replica()
    async with replica.running():
        reader, writer = await replica.connect(replica.certificates.bundle)
        certificate = x509.load_der_x509_certificate(writer.get_extra_info("ssl_object").getpeercert(binary_form=True))
        await say(reader, writer, b"hello")
        writer.close()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [NAME, f"{NAME}.cluster.local"]
    usages = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [ExtendedKeyUsageOID.SERVER_AUTH]
    days = (certificate.not_valid_after_utc.timestamp() - clock.wall()) / DAY_SECONDS
    assert days == Schedule().serving_seconds / DAY_SECONDS


class _Observer(ssl.SSLContext):
    """A context that notes which file OpenSSL is told to read."""

    paths: ClassVar[list[tuple[Path, Path, int]]] = []

    def load_cert_chain(self, certfile: Any, *arguments: Any) -> None:
        """Note the path, the file that it leads to, and how many names that file has."""
        path = Path(certfile)
        self.paths.append((path, path.readlink(), path.stat().st_nlink))
        super().load_cert_chain(certfile, *arguments)


def test_no_key_reaches_a_disk() -> None:
    """OpenSSL reads the key from a file in memory, which has no name and is closed at once."""
    authority = new_authority("test", Validity(0, 1000))
    load(_Observer(ssl.PROTOCOL_TLS_SERVER), sign_serving(authority, [NAME], Validity(0, 10)))
    ((path, target, names),) = _Observer.paths
    assert str(target).startswith("/memfd:")
    assert names == 0
    assert not path.exists()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_the_oldest_tls_that_is_spoken(cluster: Cluster, new_replica: Make, version: ssl.TLSVersion) -> None:
    """A client of TLS 1.2 is served where 1.2 is the oldest version allowed, and refused where 1.3 is."""
    replica = await new_replica(settings=replace(SETTINGS, minimum_tls=version))
    async with replica.running():
        client = ssl.create_default_context(cadata=cluster.bundle())
        client.verify_flags |= NO_CHECK_TIME
        client.maximum_version = ssl.TLSVersion.TLSv1_2
        connection = asyncio.open_connection(LOOPBACK, replica.port, ssl=client, server_hostname=NAME)
        if version == ssl.TLSVersion.TLSv1_2:
            _, writer = await connection
            writer.close()
        else:
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await connection
            await replica.ask(cluster.bundle())


async def test_a_right_that_is_missing_is_waited_for(
    cluster: Cluster, new_replica: Make, clock: JumpingClock, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning names the missing right, however many tries fail; once the role allows it, the daemon starts."""
    replica = await new_replica(token=cluster.limited_token())
    start = asyncio.ensure_future(replica.certificates.start())
    await eventually(lambda: clock.waiting, "the first try failed")
    for _ in range(5):
        await pass_time(clock, [replica], 60.0)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert 'cannot get resource "secrets"' in warning
    rules = [{"apiGroups": [""], "resources": ["secrets", "configmaps"], "verbs": ["create", "get", "patch"]}]
    role = ("roles.rbac.authorization.k8s.io", "podidentity-system", "broker")
    assert cluster.kubernetes.storage.change(*role, lambda item: item.update(rules=rules))
    clock.jump(60.0)
    await start
    assert replica.certificates.is_ready
