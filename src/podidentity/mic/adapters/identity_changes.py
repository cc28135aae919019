"""Tells a listener which AzureIdentities users change, while a term lasts.

Any change by a user counts, an annotation too: whoever has granted a role touches the object and need not wait. MIC's
own conditions are in the status and do not count. How often one AzureIdentity is tried again is up to the listener.
"""

import asyncio

from podidentity.core.model.identities import AzureIdentity
from podidentity.core.target import state
from podidentity.kube.store import Change, Store
from podidentity.mic.ports import IdentityListener


class IdentityChanges:
    """The context in which the listener hears of changes; at its start it hears of all client IDs."""

    def __init__(self, store: Store[AzureIdentity], listener: IdentityListener) -> None:
        self._store = store
        self._listener = listener
        self._is_scheduled = False

    def __enter__(self) -> None:
        self._unsubscribe = self._store.subscribe(self._handle)
        self._report_client_ids()

    def __exit__(self, *_: object) -> None:
        self._unsubscribe()

    def _handle(self, change: Change[AzureIdentity]) -> None:
        old, new = change.previous, change.current
        if old is not None and new is not None and (old, old.stamp) == (new, new.stamp):
            return
        identities = {identity.arm_id for identity in (old, new) if identity is not None}
        self._listener.touch(arm_id for arm_id in identities if arm_id is not None)
        if not self._is_scheduled:  # a thousand changes in one turn of the loop are reported once
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._report_client_ids)

    def _report_client_ids(self) -> None:
        self._is_scheduled = False
        stated = ((identity.arm_id, identity.client_id) for identity in self._store)
        self._listener.expect(state.expected_client_ids(stated))
