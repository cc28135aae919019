"""Reads certificates that are imported, in a process of its own with an end: PFX and PEM can ask for any work.

The file itself says how often its password is hashed, and how much memory that takes, up to years and terabytes.
"""

import asyncio
import json
import resource
import sys

from cryptography import x509

from podidentity_lab.azure import keyvault_crypto, keyvault_x509
from podidentity_lab.azure.keyvault_crypto import BadParameterError
from podidentity_lab.azure.keyvault_x509 import Bundle

_SECONDS = 10
_MEMORY_BYTES = 2**30  # of addresses; scrypt with OpenSSL's own limit takes 32 MiB


async def parse(value: str, password: str) -> Bundle:
    """Return what `keyvault_x509.parse` returns. Raises `BadParameterError`, also for what would take too long."""
    command = (sys.executable, "-P", "-m", __name__)
    pipe, no_output = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, stderr=no_output)
    try:
        async with asyncio.timeout(_SECONDS):
            output, _ = await process.communicate(json.dumps([value, password]).encode())
    except TimeoutError:
        message = f"The certificate takes more than {_SECONDS} seconds to read: export it with fewer iterations."
        raise BadParameterError(message) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode != 0:  # no memory, or an algorithm that the library does not have
        raise BadParameterError(keyvault_x509.UNREADABLE)
    answer = json.loads(output)
    if "error" in answer:
        raise BadParameterError(answer["error"])
    certificate, *chain = (x509.load_pem_x509_certificate(pem.encode()) for pem in answer["certificates"])
    return Bundle(keyvault_crypto.from_pem(answer["key"]), certificate, tuple(chain), answer["content_type"])


def _main() -> None:
    """Read value and password as JSON from standard input, and write the bundle, or the error, to standard output."""
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the memory has a private key in it
    value, password = json.load(sys.stdin)
    try:
        bundle = keyvault_x509.parse(value, password)
    except BadParameterError as error:
        json.dump({"error": str(error)}, sys.stdout)
        return
    certificates = [keyvault_x509.to_pem(item) for item in (bundle.certificate, *bundle.chain)]
    key = keyvault_crypto.to_pem(bundle.key)
    json.dump({"key": key, "certificates": certificates, "content_type": bundle.content_type}, sys.stdout)


if __name__ == "__main__":
    _main()
