"""Secrets of service principals: read one by one, and known to have changed before a cached token is given.

NMI may get a Secret and nothing else (no list, no watch: it would see every Secret of the cluster). Therefore a cached
token counts only while its Secret was read within the last seconds; after that it is read again, once for all who ask,
and what is remembered of it is a digest. Constructed by `daemon`; asked by `cache` and `principals`.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from typing import NamedTuple

from podidentity.core.identities import SecretReference
from podidentity.core.sources import ServicePrincipal, Source
from podidentity.errors import KubernetesError, ThrottledError, UnreachableError
from podidentity.nmi.ports import Clock, SecretContents, Secrets

_log = logging.getLogger(__name__)

CONFIRMED_SECONDS = 5.0
"""How long a Secret that was read is taken to be the same. A token given meanwhile was good when it was changed."""
_READ_SECONDS = 5.0
_REMEMBERED = 4096


class _Known(NamedTuple):
    digest: bytes
    read_at: float


class Credentials:
    """Secrets, as they are now. `on_change` is told which one is no longer what tokens were made with."""

    def __init__(self, secrets: Secrets, clock: Clock, on_change: Callable[[SecretReference], None]) -> None:
        self._secrets = secrets
        self._clock = clock
        self._on_change = on_change
        self._known: dict[SecretReference, _Known] = {}
        self._under_way: dict[SecretReference, asyncio.Future[None]] = {}

    def stands(self, source: Source) -> bool:
        """Say whether what was made with this source's Secret may be given without another look at it."""
        if not isinstance(source, ServicePrincipal):
            return True
        known = self._known.get(source.secret)
        return known is not None and self._clock.steady() - known.read_at < CONFIRMED_SECONDS

    async def check(self, source: Source) -> None:
        """Look at the source's Secret unless it stands; `on_change` comes before this returns, errors stay here.

        While the API server is away, what was read last counts: the token in the cache is one that Entra ID gave.
        """
        if not isinstance(source, ServicePrincipal) or self.stands(source):
            return
        secret = source.secret
        under_way = self._under_way.get(secret)
        if under_way is not None:
            await asyncio.shield(under_way)
            return
        try:
            await self.read(secret)
        except (UnreachableError, ThrottledError):
            known = self._known.get(secret)
            if known is not None:
                self._known[secret] = known._replace(read_at=self._clock.steady())
        except KubernetesError:
            pass  # noted by `read`; whoever asks for a token now is told

    async def read(self, secret: SecretReference) -> SecretContents:
        """Read a Secret now. Raises `KubernetesError`, `NotFoundError` when there is none."""
        done = self._under_way[secret] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(_READ_SECONDS):
                contents = await self._secrets.read_secret(secret)
        except TimeoutError:
            raise UnreachableError(f"get secret {secret}: no answer within {_READ_SECONDS:g} s") from None
        except (UnreachableError, ThrottledError):
            raise
        except KubernetesError:
            self._forget(secret)
            raise
        finally:
            if self._under_way.get(secret) is done:
                del self._under_way[secret]
            done.set_result(None)
        self._note(secret, _digest(contents))
        return contents

    def _note(self, secret: SecretReference, digest: bytes) -> None:
        before = self._known.pop(secret, None)
        self._known[secret] = _Known(digest, self._clock.steady())
        while len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]
        if before is not None and before.digest != digest:
            _log.info("Secret %s has changed: tokens made with it are dropped", secret)
            self._on_change(secret)

    def _forget(self, secret: SecretReference) -> None:
        if self._known.pop(secret, None) is not None:
            _log.warning("Secret %s cannot be read any more: tokens made with it are dropped", secret)
            self._on_change(secret)


def _digest(contents: SecretContents) -> bytes:
    digest = hashlib.sha256()
    for name, value in sorted(contents.items()):
        digest.update(b"%d:%b%d:%b" % (len(name), name.encode(), len(value), value))
    return digest.digest()
