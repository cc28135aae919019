"""Keeps a daemon's serving certificate, CA and published bundle as they should be.

One look: read the Secret, take the steps that `core.certificates.replacement` names, sign a serving certificate if one
is due, publish the bundle. A look that fails is repeated after a growing pause; the certificate in use stays meanwhile.
"""

import asyncio
import logging
import ssl
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from podidentity.certificates import secret
from podidentity.certificates.authority import sign_serving
from podidentity.certificates.publications import Outcomes, Publication
from podidentity.certificates.secret import Authorities, AuthoritySecret
from podidentity.certificates.serving_context import load, new_context
from podidentity.certificates.settings import CertificateSettings
from podidentity.core.certificates.replacement import (
    Create,
    Prepare,
    Promote,
    Publish,
    Retire,
    Validity,
    Wait,
    next_step,
    serving_validity,
)
from podidentity.errors import ConfigurationError, ConflictError, KubernetesError
from podidentity.kube.api import Api
from podidentity.timing import SYSTEM_CLOCK, Clock

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0
CONFLICTS = 5
"""How many conflicts in a row are followed by a new look at once: each means that another replica did the work."""

_log = logging.getLogger(__name__)


class Certificates:
    """A daemon's certificates. `start` once, serve with `context`, and leave `run` running."""

    def __init__(
        self,
        api: Api,
        settings: CertificateSettings,
        publications: Sequence[Publication] = (),
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        self.context = new_context(settings.minimum_tls)
        """What the daemon serves with; it has a certificate once `start` has returned."""
        self.bundle = ""
        """The certificates that clients must trust, as PEM."""
        self.serving: Validity | None = None
        """From when to when the serving certificate is valid, in seconds since 1970; None before the first."""
        self.authority: Validity | None = None
        """The same for the CA in use."""
        self.signatures = 0
        """How many serving certificates this replica has had."""
        self.steps: dict[str, int] = {}
        """How often this replica took each step of a replacement, by the step's name in small letters."""
        self._settings = settings
        self._publications = publications
        self._clock = clock
        self._secret = AuthoritySecret(api, settings.secret)
        self._api = api
        self._signer = b""
        self._is_published = False
        self._problem = ""
        self._refusals: Mapping[str, str] = {}
        self._wakeup = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        """Whether clients can be served: the certificate is valid, and the bundle was published."""
        return self._is_published and self.serving is not None and self._clock.wall() < self.serving.end

    @property
    def problem(self) -> str:
        """Why the last look failed; empty when it did not."""
        return self._problem

    @property
    def refusals(self) -> Mapping[str, str]:
        """Which places have not got the bundle, and why."""
        return MappingProxyType(dict(self._refusals))

    @property
    def restorations(self) -> int:
        """How often somebody deleted or emptied the Secret and this replica wrote it back."""
        return self._secret.restorations

    async def start(self) -> ssl.SSLContext:
        """Return the context once it has a certificate and the bundle was brought to every place that takes it."""
        await self._look_until_done()
        return self.context

    async def run(self) -> None:
        """Look after everything until cancelled. Never raises for a refusal or a silence of the API server."""
        while True:
            until = await self._look_until_done()
            await self._wait(min(max(until - self._clock.wall(), 0.0), self._settings.look_seconds))

    def wake(self) -> None:
        """Let `run` look at once: there is a new namespace, for example."""
        self._wakeup.set()

    async def _wait(self, seconds: float) -> None:
        """Wait, no longer than until somebody calls `wake`."""
        tasks = [asyncio.ensure_future(self._clock.sleep(seconds)), asyncio.ensure_future(self._wakeup.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
        self._wakeup.clear()

    async def _look_until_done(self) -> float:
        """Look, again after each failure; return the moment of the next step."""
        pause, conflicts = FIRST_PAUSE_SECONDS, 0
        while True:
            try:
                until = await self._look()
            except ConflictError as error:
                conflicts += 1
                if conflicts <= CONFLICTS:
                    continue
                self._note_problem(str(error))
            except (KubernetesError, ConfigurationError) as error:
                self._note_problem(str(error))
            else:
                self._note_problem("")
                return until
            await self._clock.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    async def _look(self) -> float:
        """Take every step that is due; return when to look again. Raises KubernetesError, ConfigurationError."""
        read_at = self._clock.wall()
        restorations = self._secret.restorations
        authorities = await self._secret.read()
        if self._secret.restorations > restorations:
            _log.warning("%s was deleted or emptied: written back; annotate it with %s to replace the CA",
                         self._secret, secret.WISH)  # fmt: skip
        while True:
            self._sign_if_due(authorities, read_at)
            step = next_step(authorities.state, self._settings.schedule, self._clock.wall())
            if isinstance(step, Wait):
                break
            authorities = await self._take(step, authorities)
        await self._publish(authorities)
        return step.until

    async def _take(self, step: Create | Prepare | Publish | Promote | Retire, authorities: Authorities) -> Authorities:
        """Take a step and return the Secret's new content."""
        name, schedule = self._settings.secret.name, self._settings.schedule
        now, answer = self._clock.wall(), ""
        match step:
            case Create():
                changes, answer = secret.creation(name, schedule, now), authorities.wish
            case Prepare():
                changes, answer = secret.preparation(name, schedule, now), authorities.wish
            case Publish():
                await self._publish_somewhere(authorities)
                changes = secret.publication(self._clock.wall())
            case Promote():
                changes = secret.promotion(authorities, now)
            case Retire():
                changes = secret.retirement()
        authorities = await self._secret.write(changes, answer=answer)
        word = type(step).__name__.lower()
        self.steps[word] = self.steps.get(word, 0) + 1
        _log.info("%s: %s", self._secret, _MESSAGES[type(step)])
        return authorities

    def _sign_if_due(self, authorities: Authorities, read_at: float) -> None:
        """Serve with a new certificate when the present one is old or of another CA."""
        authority = authorities.current
        if authority is None or authorities.state.current is None:
            return
        now, identifier = self._clock.wall(), authority.certificate_pem + authorities.cross_pem
        self.authority = authorities.state.current
        if self.serving is not None and identifier == self._signer and now < self.serving.renewal:
            return
        validity = serving_validity(self.authority, self._settings.schedule, read_at, now)
        if validity.end <= now:
            return  # the CA has ended: the next step makes a new one
        load(self.context, sign_serving(authority, self._settings.dns_names, validity, authorities.cross_pem))
        self.serving, self._signer = validity, identifier
        self.signatures += 1

    async def _publish_somewhere(self, authorities: Authorities) -> None:
        """Bring the bundle everywhere; raise a refusal when no place takes it: no client could know the new CA."""
        errors = (await self._publish(authorities)).values()
        refusal = next(iter(errors), None)
        if refusal is not None and all(errors):
            raise refusal

    async def _publish(self, authorities: Authorities) -> Outcomes:
        """Bring the bundle everywhere; warn once of each place that refuses it."""
        self.bundle = authorities.bundle(self._settings.schedule, self._clock.wall())
        outcomes: dict[str, KubernetesError | None] = {}
        for publication in self._publications:
            outcomes |= await publication.publish(self._api, self.bundle, self._secret.check_version)
        refusals = {place: str(error) for place, error in outcomes.items() if error is not None}
        for place, message in refusals.items():
            if self._refusals.get(place) != message:
                _log.warning("%s has not got the trust bundle: %s", place, message)
        self._refusals = refusals
        self._is_published = True
        return outcomes

    def _note_problem(self, message: str) -> None:
        """Log each problem once, and its end."""
        if message and message != self._problem:
            _log.warning("certificates wait: %s", message)
        elif self._problem and not message:
            _log.info("certificates go on: %s", self._secret)
        self._problem = message


_MESSAGES = {
    Create: "a CA was made and signs from now on",
    Prepare: "a new CA was made; it signs once every client can have read the bundle",
    Publish: "the bundle with the new CA is published",
    Promote: "the new CA signs from now on",
    Retire: "the CA before is no longer trusted",
}
