"""Answers one admission review: reads the pod's service account, decides, and writes the patch."""

import logging
from time import perf_counter

from podidentity.core.injection import conflicts, reviews
from podidentity.core.injection.mutation import mount_name, patch
from podidentity.core.injection.reviews import Review
from podidentity.core.injection.rules import Rules
from podidentity.core.injection.wishes import Denial, read_wish
from podidentity.core.model.http_request import HttpRequest
from podidentity.errors import KubernetesError
from podidentity.https.answers import Answer
from podidentity.webhook.metrics import Metrics
from podidentity.webhook.ports import Accounts

_log = logging.getLogger(__name__)

MUTATE_PATH = "/mutate-v1-pod"
WARN_PATH = "/warn-v1"
BODY_LIMIT_BYTES = 8 * 1024 * 1024
"""An object of etcd's 1.5 MB may stand twice in a review, and grow by the escapes of JSON."""
_NAMESPACES = 1000


class App:
    """The webhook. `rules` say what it offers."""

    def __init__(self, rules: Rules, accounts: Accounts, metrics: Metrics) -> None:
        self._rules = rules
        self._accounts = accounts
        self._metrics = metrics
        self._namespaces: set[str] = set()

    async def answer(self, message: HttpRequest, address: str) -> Answer:
        """Answer one review; what is none is refused with 400, 404 or 405."""
        del address
        start = perf_counter()
        if message.path not in {MUTATE_PATH, WARN_PATH}:
            return _refusal(404, "there is nothing here but the webhook")
        if message.method != "POST":
            return Answer(405, b'{"error":"reviews are sent with POST"}', allow="POST")
        review = reviews.parse_review(message.body)
        if review is None:
            return _refusal(400, "this is no AdmissionReview of admission.k8s.io/v1 or v1beta1")
        if message.path == WARN_PATH:
            warning = reviews.misplaced_label(review)
            return Answer(200, reviews.allow(review, warnings=[warning] if warning else []))
        try:
            return Answer(200, await self._mutate(review))
        except KubernetesError as error:
            _log.warning("a pod of namespace %s cannot be judged: %s", review.namespace, error)
            self._metrics.outcomes.labels("error", "").inc()
            return _refusal(503, "the service account cannot be read now")
        finally:
            self._metrics.mutations.labels(self._label(review.namespace)).observe(perf_counter() - start)

    async def _mutate(self, review: Review) -> bytes:
        if review.kind != "Pod":
            return reviews.allow(review)
        account = f"{review.namespace}/{review.account}"
        annotations = await self._accounts.annotations_of(review.namespace, review.account)
        if annotations is None:
            return self._deny(review, Denial(f"service account {account} does not exist; create it before its pods"))
        wish = read_wish(review.annotations, annotations, account, self._rules)
        if isinstance(wish, Denial):
            return self._deny(review, wish)
        self._metrics.outcomes.labels("changed", wish.door).inc()
        warnings = (*wish.warnings, *conflicts.find(review.content, wish, mount_name(review.content, wish)))
        return reviews.allow(review, patch(review.content, wish, self._rules), warnings)

    def _deny(self, review: Review, denial: Denial) -> bytes:
        _log.info("a pod of namespace %s is refused: %s", review.namespace, denial.message)
        self._metrics.outcomes.labels("refused", "").inc()
        return reviews.deny(review, denial)

    def _label(self, namespace: str) -> str:
        """Return the namespace as a label; of so many namespaces that it would grow without end, none."""
        if len(self._namespaces) < _NAMESPACES:
            self._namespaces.add(namespace)
        return namespace if namespace in self._namespaces else ""


def _refusal(status: int, message: str) -> Answer:
    return Answer(status, b'{"error":"%b"}' % message.encode())
