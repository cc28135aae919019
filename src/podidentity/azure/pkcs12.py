"""A program that signs one assertion for Entra ID with the key in a PKCS#12 archive, and ends.

Whoever may write a Secret chooses how often a password is hashed and how long a key is, and the interpreter's lock is
held while OpenSSL hashes, checks the key (a third of a second for 4,096 bits) and signs. Therefore this runs in a
process of its own, which `certificates` starts and the kernel ends: its limits of processor time and memory hold
whatever the archive says. What can be read beforehand (RFC 7292, RFC 8018) is checked first, for a sentence that says
what is wrong.
"""

import base64
import contextlib
import json
import os
import resource
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import jwt
from cryptography import x509
from cryptography.hazmat import asn1
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import pkcs12
from cryptography.x509 import ObjectIdentifier

from podidentity.errors import ConfigurationError

PROCESSOR_SECONDS = 5
ARCHIVE_BYTES = 256 * 1024
"""A key and a chain of certificates have some 10 kB."""
ROUNDS = 1_000_000
"""Of hashing a password, at most: a second and a half. OpenSSL's default is 2,048."""
KEY_BITS = 4096
"""Entra ID takes longer RSA keys, but nobody has one, and checking one of 16,384 bits takes minutes."""
_ASSERTION_SECONDS = 600
_MEMORY_BYTES = 512 * 1024 * 1024  # addresses, mostly of libraries; scrypt may ask for more than a node has

_SEQUENCE_TAG = b"\x30"
_LONG_FORM = 0x80  # of a length: that many octets follow

_DATA = ObjectIdentifier("1.2.840.113549.1.7.1")
_ENCRYPTED_DATA = ObjectIdentifier("1.2.840.113549.1.7.6")
_SHROUDED_KEY = ObjectIdentifier("1.2.840.113549.1.12.10.1.2")
_PBES2 = ObjectIdentifier("1.2.840.113549.1.5.13")
_PBKDF2 = ObjectIdentifier("1.2.840.113549.1.5.12")
_PBMAC1 = ObjectIdentifier("1.2.840.113549.1.5.14")
_PKCS12_PBE = "1.2.840.113549.1.12.1."
_PBES1 = tuple(ObjectIdentifier(f"1.2.840.113549.1.5.{number}") for number in (1, 3, 4, 6, 10, 11))


def rounds_of(archive: bytes) -> Iterator[int]:
    """Yield how often each part of an archive that can be read without its password has a password hashed.

    Raises `ValueError` or `IndexError` for what is no such archive in DER: OpenSSL reads more than that.
    """
    _, contents, *macs = _elements(archive)
    for mac in macs:
        digest, _, *rounds = _inside(mac)
        yield from (number.parse(int) for number in rounds)
        yield from _rounds(_inside(digest)[0])
    for kind, content in (_content(element) for element in _elements(_octets(contents))):
        if kind == _ENCRYPTED_DATA:
            _, encrypted = _elements(content)
            yield from _rounds(_inside(encrypted)[1])
        elif kind == _DATA:
            yield from _rounds_of_keys(asn1.decode_der(bytes, content))


def _rounds_of_keys(bags: bytes) -> Iterator[int]:
    for bag in _elements(bags):
        kind, value = _content(bag)
        if kind == _SHROUDED_KEY:
            yield from _rounds(_elements(value)[0])


@asn1.sequence
class _Sequence:
    elements: list[asn1.TLV]


def _elements(sequence: bytes) -> list[asn1.TLV]:
    """Return the elements of a DER sequence, of whatever kinds: the library reads such a list as a field only."""
    return asn1.decode_der(_Sequence, _in_sequence(sequence)).elements


def _inside(element: asn1.TLV) -> list[asn1.TLV]:
    """Return the elements of an element that is a sequence."""
    if element.tag_bytes != _SEQUENCE_TAG:
        raise ValueError("no sequence")
    return _elements(_in_sequence(bytes(element.data)))


def _in_sequence(contents: bytes) -> bytes:
    length = len(contents)
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return (
        _SEQUENCE_TAG
        + (bytes([length]) if length < _LONG_FORM else bytes([_LONG_FORM + len(octets)]) + octets)
        + contents
    )


def _content(element: asn1.TLV) -> tuple[ObjectIdentifier, bytes]:
    """Return what a ContentInfo or a SafeBag says it holds, and that."""
    kind, explicit, *_ = _inside(element)
    return kind.parse(ObjectIdentifier), bytes(explicit.data)


def _octets(element: asn1.TLV) -> bytes:
    """Return the octets in a ContentInfo that holds data; a signed archive is none that we open."""
    kind, content = _content(element)
    if kind != _DATA:
        raise ValueError("not locked with a password")
    return asn1.decode_der(bytes, content)


def _rounds(algorithm: asn1.TLV) -> Iterator[int]:
    """Yield the rounds of PBES1, PBES2 and PBMAC1; of anything else none."""
    identifier, *parameters = _inside(algorithm)
    kind = identifier.parse(ObjectIdentifier)
    for parameter in parameters:
        if kind in _PBES1 or kind.dotted_string.startswith(_PKCS12_PBE):
            yield _inside(parameter)[1].parse(int)
        elif kind in {_PBES2, _PBMAC1}:
            function, function_parameters = _inside(_inside(parameter)[0])
            if function.parse(ObjectIdentifier) == _PBKDF2:
                yield _inside(function_parameters)[1].parse(int)


def check(archive: bytes) -> None:
    """Raise `ConfigurationError` when it is plain that opening would take too long."""
    if len(archive) > ARCHIVE_BYTES:
        raise ConfigurationError(
            f"the PKCS#12 archive has more than {ARCHIVE_BYTES} bytes; export this certificate alone"
        )
    try:
        rounds = max(rounds_of(archive), default=0)
    except (ValueError, IndexError):
        return  # the limits of this process hold
    if rounds > ROUNDS:
        raise ConfigurationError(f"the PKCS#12 archive wants {rounds} rounds of hashing; at most {ROUNDS} are done")


def open_archive(archive: bytes, password: bytes) -> tuple[rsa.RSAPrivateKey, x509.Certificate]:
    """Return the private key and its certificate. Raises `ConfigurationError` for any other archive."""
    check(archive)
    try:
        key, certificate, _ = pkcs12.load_key_and_certificates(archive, password or None)
    except (ValueError, TypeError, MemoryError):
        raise ConfigurationError("it is no PKCS#12 archive, or its password is another one; correct either") from None
    if key is None or certificate is None:
        raise ConfigurationError("the PKCS#12 archive lacks a certificate or its private key; export both into it")
    if not isinstance(key, rsa.RSAPrivateKey) or key.key_size > KEY_BITS:
        raise ConfigurationError(f"the archive's key is no RSA key of at most {KEY_BITS} bits; make one")
    return key, certificate


def sign(key: rsa.RSAPrivateKey, certificate: x509.Certificate, claims: Mapping[str, str], *, adfs: bool) -> str:
    """Return the signed assertion (learn.microsoft.com/entra/identity-platform/certificate-credentials).

    The certificate goes along, for those who trust its subject's name. AD FS knows SHA-1 thumbprints only.
    """
    now = int(time.time())
    algorithm, name, digest = ("RS256", "x5t", hashes.SHA1()) if adfs else ("PS256", "x5t#S256", hashes.SHA256())  # noqa: S303  # a name, not a proof
    headers = {
        name: base64.urlsafe_b64encode(certificate.fingerprint(digest)).decode().rstrip("="),
        "x5c": [base64.b64encode(certificate.public_bytes(serialization.Encoding.DER)).decode()],
    }
    times = {"iat": now, "nbf": now, "exp": now + _ASSERTION_SECONDS, "jti": str(uuid.uuid4())}
    return jwt.encode({**claims, **times}, key, algorithm=algorithm, headers=headers)


def main() -> None:
    """Read a line of JSON and the archive, write a line of JSON: `{"assertion": ...}` or `{"error": ...}`."""
    resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR_SECONDS, PROCESSOR_SECONDS + 1))  # SIGXCPU, then SIGKILL
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a key is in it
    with contextlib.suppress(OSError):  # when memory runs out, this is to end and not the daemon
        Path("/proc/self/oom_score_adj").write_text("1000")
    os.nice(5)  # the daemon goes first
    request = json.loads(sys.stdin.buffer.readline())
    try:
        key, certificate = open_archive(sys.stdin.buffer.read(), bytes.fromhex(request["password"]))
        outcome = {"assertion": sign(key, certificate, request["claims"], adfs=request["adfs"])}
    except ConfigurationError as error:
        outcome = {"error": str(error)}
    sys.stdout.write(json.dumps(outcome))


if __name__ == "__main__":
    main()
