"""Hostile PKCS#12 archives: what they cost NMI, and that other work goes on meanwhile."""

import asyncio
import re
import subprocess
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import dh, ec, rsa
from cryptography.hazmat.primitives.serialization import pkcs12 as library

from daemons.nmi.entra import StandInEntra
from daemons.nmi.harness import TARGET, pod
from daemons.nmi.test_principals import SECRET, Pair, entra, pair, principal, signing_in
from podidentity.azure import certificates, pkcs12
from podidentity.azure.certificates import Certificate, Signer
from podidentity.errors import ConfigurationError

__all__ = ["entra", "pair"]

PASSWORD = b"open sesame"
LARGEST = b"\x02\x04\x7f\xff\xff\xff"
"""2^31 - 1 as DER writes it."""


def export(pair: Pair, directory: Path, *flags: str) -> bytes:
    """Write an archive with openssl."""
    pem, archive = directory / "pair.pem", directory / "archive"
    pem.write_bytes(pair.pem())
    command = [
        "openssl",
        "pkcs12",
        "-export",
        "-in",
        str(pem),
        "-out",
        str(archive),
        "-passout",
        f"pass:{PASSWORD.decode()}",
    ]
    subprocess.run([*command, *flags], check=True, capture_output=True)
    return archive.read_bytes()


def sign(archive: bytes, password: bytes = PASSWORD) -> str:
    """Sign with an archive."""
    return Signer().sign(Certificate(archive, password), "app", "https://login/token", adfs=False)


FLAGS = [
    (),
    ("-legacy",),
    ("-keypbe", "NONE", "-certpbe", "NONE"),
    ("-keypbe", "PBE-SHA1-3DES", "-certpbe", "NONE", "-macalg", "sha1"),
    ("-nomac",),
    ("-iter", "5000"),
]


@pytest.mark.parametrize("flags", FLAGS, ids="_".join)
def test_what_openssl_exports_is_opened(pair: Pair, tmp_path: Path, flags: tuple[str, ...]) -> None:
    """NMI signs with an archive of openssl, whatever ciphers, digests and rounds the export chose."""
    archive = export(pair, tmp_path, *flags)
    assert all(rounds in {2048, 5000} for rounds in pkcs12.rounds_of(archive))
    assert sign(archive).count(".") == 2


def with_most_rounds(pair: Pair, directory: Path) -> bytes:
    """Write an archive whose MAC's count, which the MAC does not cover, says 2^31 - 1: half an hour for OpenSSL."""
    archive = export(pair, directory, "-keypbe", "NONE", "-certpbe", "NONE", "-macalg", "sha256")
    usual = b"\x02\x02\x08\x00"
    start = archive.rindex(b"\x30\x41\x30\x31\x30\x0d")
    assert archive.endswith(usual)
    assert archive[:2] == b"\x30\x82"
    longer = (int.from_bytes(archive[2:4], "big") + 2).to_bytes(2, "big")
    mac = b"\x30\x43" + archive[start + 2 : -len(usual)] + LARGEST
    return archive[:2] + longer + archive[4:start] + mac


@pytest.mark.parametrize("flags", [("-keypbe", "NONE", "-certpbe", "NONE"), ("-legacy", "-nomac"), ("-nomac",)])
def test_each_count_of_rounds_is_checked_before_anything_is_opened(
    pair: Pair, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    """The counts of the MAC, the certificate's and the key's encryption are limited, whatever the password is."""
    archive = export(pair, tmp_path, *flags, "-iter", "70000")
    pattern = b"\x02\x03\x01\x11\x70"
    assert archive.count(pattern) == len([*pkcs12.rounds_of(archive)]) > 0
    for match in re.finditer(re.escape(pattern), archive):
        edited = archive[: match.start()] + b"\x02\x03\x7f\xff\xff" + archive[match.end() :]
        with pytest.raises(ConfigurationError, match="wants 8388607 rounds of hashing; at most 1000000 are done"):
            sign(edited)


async def test_the_most_rounds_are_refused_and_cost_nobody_else_a_moment(
    entra: StandInEntra, pair: Pair, tmp_path: Path
) -> None:
    """An archive that wants 2^31 - 1 rounds gets 503, and no turn of the event loop takes a quarter of a second."""
    archive = with_most_rounds(pair, tmp_path)
    assert [*pkcs12.rounds_of(archive)] == [2**31 - 1]

    async with signing_in(entra) as nmi:
        nmi.cluster.secrets[SECRET] = {"certificate": archive, "password": PASSWORD}
        nmi.cluster.add(pod(), principal(entra, type=2))
        assert await longest_pause(nmi.ask(TARGET)) < 0.25
        answer = await nmi.ask(TARGET)
        assert answer.status == 503
        assert "wants 2147483647 rounds of hashing" in answer.json["error_description"]


@pytest.mark.parametrize("by_processor", [True, False])
def test_what_cannot_be_read_beforehand_ends_by_its_limits(
    pair: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, by_processor: bool
) -> None:
    """The program that opens an archive is killed at its limit of processor time, or of time by the clock."""
    program, starts = tmp_path / "endless.py", tmp_path / "starts"
    program.write_text(
        "from pathlib import Path\n"
        "from podidentity.azure import pkcs12\n"
        f"Path({str(starts)!r}).open('a').write('start ')\n"
        "pkcs12.check = lambda archive: None\n"
        + ("pkcs12.PROCESSOR_SECONDS = 3\n" if by_processor else "pkcs12.PROCESSOR_SECONDS = 1000\n")
        + "pkcs12.main()\n"
    )
    monkeypatch.setattr(certificates, "_PROGRAM", (str(program),))
    monkeypatch.setattr(certificates, "SIGNING_SECONDS", 30.0 if by_processor else 2.0)
    signer, certificate = Signer(), Certificate(with_most_rounds(pair, tmp_path), PASSWORD)
    for _ in range(3 if by_processor else 1):  # an end by the clock is not remembered: the node may have been busy
        with pytest.raises(ConfigurationError, match="takes too long or too much memory"):
            signer.sign(certificate, "app", "https://login/token", adfs=False)
    assert starts.read_text() == "start "  # after the first time the refusal is remembered


@pytest.mark.filterwarnings("ignore:Diffie-Hellman")
async def test_a_huge_key_costs_nobody_else_a_moment(entra: StandInEntra, pair: Pair) -> None:
    """An RSA key of 16,384 bits, whose check takes longer than the limit, gets 503 and does not stop the event loop."""
    key = huge_key()
    assert key.key_size == 16384
    certificate = pair.certificate
    archive = library.serialize_key_and_certificates(b"sp", key, None, [certificate], serialization.NoEncryption())

    async with signing_in(entra) as nmi:
        nmi.cluster.secrets[SECRET] = {"certificate": archive}
        nmi.cluster.add(pod(), principal(entra, type=2))
        assert await longest_pause(nmi.ask()) < 0.25
        assert (await nmi.ask()).status == 503


def huge_key() -> rsa.RSAPrivateKey:
    """Return a key of two well-known primes (RFC 3526 group 18, RFC 7919 ffdhe8192)."""
    first, second = (prime(group) for group in ("modp_8192", "ffdhe8192"))
    exponent = 65537
    secret = pow(exponent, -1, (first - 1) * (second - 1))
    public = rsa.RSAPublicNumbers(exponent, first * second)
    parts = secret % (first - 1), secret % (second - 1), rsa.rsa_crt_iqmp(first, second)
    numbers = rsa.RSAPrivateNumbers(first, second, secret, *parts, public)
    return numbers.private_key(unsafe_skip_rsa_key_validation=True)


def prime(group: str) -> int:
    """Return the prime of a group that OpenSSL knows."""
    command = ["openssl", "genpkey", "-algorithm", "DH", "-pkeyopt", f"group:{group}", "-outform", "DER"]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    key = serialization.load_der_private_key(output, None)
    assert isinstance(key, dh.DHPrivateKey)
    return key.parameters().parameter_numbers().p


def test_another_kind_of_key_is_a_sentence(pair: Pair) -> None:
    """An archive with an elliptic key and no certificate, and one that is too large, are refused in a sentence."""
    key = ec.generate_private_key(ec.SECP256R1())
    archive = library.serialize_key_and_certificates(b"sp", key, None, None, serialization.NoEncryption())
    with pytest.raises(ConfigurationError, match="lacks a certificate or its private key"):
        sign(archive, b"")
    with pytest.raises(ConfigurationError, match="more than 262144 bytes"):
        sign(pair.archive() + bytes(pkcs12.ARCHIVE_BYTES), b"")


async def longest_pause(work: Coroutine[Any, Any, object]) -> float:
    """Return the longest turn of the event loop while `work` was done, in seconds of its thread's CPU time."""
    task, longest, previous = asyncio.ensure_future(work), 0.0, time.thread_time()
    while not task.done():
        await asyncio.sleep(0)
        now = time.thread_time()
        longest, previous = max(longest, now - previous), now
    await task
    return longest
