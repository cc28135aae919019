"""Signs assertions with the keys in PKCS#12 archives, each in a process that can be killed: `pkcs12` is its program.

One at a time, because each takes some 30 MiB for a moment. That an archive cannot be opened is remembered by its
digest: as long as nobody writes another one, nothing is started again. Keys are not remembered, and never read here.
Blocks: `entra` runs it in threads.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from typing import NamedTuple

from podidentity.bounded import BoundedDict
from podidentity.errors import AzureError, ConfigurationError

SIGNING_SECONDS = 8.0
"""By the clock on the wall; of a processor, the program takes at most 5 s."""
_PROGRAM = ("-P", "-m", "podidentity.azure.pkcs12")
_VARIABLES = ("PATH", "PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "LD_LIBRARY_PATH")
_REFUSALS_LIMIT = 256
_WORDS_CHARACTERS = 200
_TOO_LONG = "opening the PKCS#12 archive takes too long or too much memory; export it with fewer rounds of hashing"


class Certificate(NamedTuple):
    """A PKCS#12 archive and what it is locked with; never shown."""

    archive: bytes
    password: bytes

    def __repr__(self) -> str:
        return "Certificate(...)"


class Signer:
    """Signs with one archive after the other."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._refusals: BoundedDict[bytes, str] = BoundedDict(_REFUSALS_LIMIT)

    def sign(self, certificate: Certificate, client_id: str, audience: str, *, adfs: bool) -> str:
        """Return an assertion of `client_id` for `audience`, a token endpoint.

        Raises `ConfigurationError` for an archive that cannot be opened, or not within the limits, `AzureError` when
        there is no process to do it.
        """
        claims = {"aud": audience, "iss": client_id, "sub": client_id}
        request = json.dumps({"password": certificate.password.hex(), "claims": claims, "adfs": adfs})
        digest = _digest(certificate)
        with self._lock:
            if digest in self._refusals:
                raise ConfigurationError(self._refusals[digest])
            outcome = _run(request.encode() + b"\n" + certificate.archive)
            if "error" in outcome:
                self._refusals[digest] = outcome["error"]
                raise ConfigurationError(outcome["error"])
        return outcome["assertion"]


def _digest(certificate: Certificate) -> bytes:
    archive, password = certificate
    return hashlib.sha256(b"%d:%b%b" % (len(password), password, archive)).digest()


def _run(request: bytes) -> dict[str, str]:
    """Run the program; killed when it takes too long."""
    variables = {name: os.environ[name] for name in _VARIABLES if name in os.environ}
    try:
        process = subprocess.run(  # our own program, and nothing of a tenant's in the command
            (sys.executable, *_PROGRAM),
            input=request,
            capture_output=True,
            env=variables,
            timeout=SIGNING_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:  # not remembered: the node may be busy
        raise ConfigurationError(_TOO_LONG) from None
    except OSError as error:
        raise AzureError(f"cannot start the program that opens PKCS#12 archives ({error}); ask again") from None
    if process.returncode == -signal.SIGXCPU:
        return {"error": _TOO_LONG}
    if process.returncode < 0:  # memory ran out, perhaps by somebody else's fault
        raise ConfigurationError(_TOO_LONG)
    if process.returncode > 0:
        words = process.stderr.decode(errors="replace").splitlines()[-1:]
        return {"error": f"the PKCS#12 archive cannot be read ({''.join(words)[:_WORDS_CHARACTERS]})"}
    outcome: dict[str, str] = json.loads(process.stdout)
    return outcome
