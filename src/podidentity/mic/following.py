"""Tells the workers what users change on AzureIdentities, while a term lasts.

Any change that a user makes counts, an annotation too: whoever has granted a role touches the object and need not wait.
MIC's own conditions stand in the status and are no change. How often one AzureIdentity is followed at once is bounded
by `targets.Workers.touch`.
"""

import asyncio

from podidentity.core import courses
from podidentity.core.identities import AzureIdentity
from podidentity.kube.store import Change, Store
from podidentity.mic.targets import Workers


class IdentityChanges:
    """From the watch to the workers; a context."""

    def __init__(self, store: Store[AzureIdentity], workers: Workers) -> None:
        self._store = store
        self._workers = workers
        self._due = False

    def __enter__(self) -> None:
        """Begin to follow."""
        self._stop = self._store.subscribe(self._changed)
        self._expect()

    def __exit__(self, *_: object) -> None:
        """Follow no more."""
        self._stop()

    def _changed(self, change: Change[AzureIdentity]) -> None:
        before, after = change.before, change.after
        if before is not None and after is not None and (before, before.stamp) == (after, after.stamp):
            return
        self._workers.touch({one.arm_id for one in (before, after) if one is not None and one.arm_id is not None})
        if not self._due:  # a thousand changes at once are one
            self._due = True
            asyncio.get_running_loop().call_soon(self._expect)

    def _expect(self) -> None:
        self._due = False
        self._workers.expect(courses.expected_client_ids((one.arm_id, one.client_id) for one in self._store))
