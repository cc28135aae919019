"""Secrets of service principals: reads them one by one, and notices a change before a cached token is given.

NMI may get a Secret and nothing else (no list, no watch: it would see every Secret of the cluster). Therefore a cached
token counts only while its Secret was read within the last seconds; after that it is read again, once for all who ask,
and only a digest of it is remembered.
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable
from typing import NamedTuple

from podidentity.bounded import BoundedDict
from podidentity.core.model.identities import SecretReference
from podidentity.core.tokens.sources import ServicePrincipal, Source
from podidentity.errors import KubernetesError, ThrottledError, UnreachableError
from podidentity.nmi.ports import SecretContents, Secrets
from podidentity.timing import Clock

_log = logging.getLogger(__name__)

CONFIRMED_SECONDS = 5.0
"""How long a Secret that was read is taken to be the same. A token given meanwhile was good when it was changed."""
_READ_SECONDS = 5.0
_SECRET_LIMIT = 4096


class _LastRead(NamedTuple):
    digest: bytes
    read_at: float


class Credentials:
    """Secrets, as they are now. Subscribers hear which one is no longer what tokens were made with."""

    def __init__(self, secrets: Secrets, clock: Clock) -> None:
        self._secrets = secrets
        self._clock = clock
        self._subscribers: list[Callable[[SecretReference], None]] = []
        self._last_reads: BoundedDict[SecretReference, _LastRead] = BoundedDict(_SECRET_LIMIT)
        self._under_way: dict[SecretReference, asyncio.Future[None]] = {}

    def subscribe(self, subscriber: Callable[[SecretReference], None]) -> None:
        """Call `subscriber` with each Secret that changes or can no longer be read."""
        self._subscribers.append(subscriber)

    def is_current(self, source: Source) -> bool:
        """Whether the Secret of `source` was read so lately that what was made with it may be given."""
        if not isinstance(source, ServicePrincipal):
            return True
        last_read = self._last_reads.get(source.secret)
        return last_read is not None and self._clock.steady() - last_read.read_at < CONFIRMED_SECONDS

    async def check(self, source: Source) -> None:
        """Read the Secret of `source` unless it is current; subscribers hear of a change before this returns.

        While the API server is away, what was read last counts: the token in the cache is one that Entra ID gave.
        """
        if not isinstance(source, ServicePrincipal) or self.is_current(source):
            return
        secret = source.secret
        under_way = self._under_way.get(secret)
        if under_way is not None:
            await asyncio.shield(under_way)
            return
        try:
            await self.read(secret)
        except (UnreachableError, ThrottledError):
            last_read = self._last_reads.get(secret)
            if last_read is not None:
                self._last_reads[secret] = last_read._replace(read_at=self._clock.steady())
        except KubernetesError:
            pass  # `read` has dropped the tokens; the next request for one gets this error

    async def read(self, secret: SecretReference) -> SecretContents:
        """Return a Secret, read now. Raises `KubernetesError`, `NotFoundError` when there is none."""
        reading = self._under_way[secret] = asyncio.get_running_loop().create_future()
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
            if self._under_way.get(secret) is reading:
                del self._under_way[secret]
            reading.set_result(None)
        self._note(secret, _digest(contents))
        return contents

    def _note(self, secret: SecretReference, digest: bytes) -> None:
        previous = self._last_reads.get(secret)
        self._last_reads[secret] = _LastRead(digest, self._clock.steady())
        if previous is not None and previous.digest != digest:
            _log.info("Secret %s has changed: tokens made with it are dropped", secret)
            self._publish(secret)

    def _forget(self, secret: SecretReference) -> None:
        if self._last_reads.pop(secret, None) is not None:
            _log.warning("Secret %s cannot be read any more: tokens made with it are dropped", secret)
            self._publish(secret)

    def _publish(self, secret: SecretReference) -> None:
        for subscriber in self._subscribers:
            subscriber(secret)


def _digest(contents: SecretContents) -> bytes:
    digest = hashlib.sha256()
    for name, value in sorted(contents.items()):
        digest.update(b"%d:%b%d:%b" % (len(name), name.encode(), len(value), value))
    return digest.digest()
