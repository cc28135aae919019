"""Device codes: a client without a browser shows a code, and a user enters it on a page of the tenant.

Protocol: RFC 8628 and learn.microsoft.com/entra/identity-platform/v2-oauth2-device-code, with its names of errors;
AADSTS numbers: .../reference-error-codes. Codes are as long-lived as Azure's and are forgotten with the lab's process.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from podidentity.bounded import BoundedDict
from podidentity_lab.azure import answers

GRANTS = frozenset({"urn:ietf:params:oauth:grant-type:device_code", "device_code"})
"""The second is v1's."""
EXPIRY_SECONDS = 900
INTERVAL_SECONDS = 5
CODES_LIMIT = 1_000
_LETTERS = "ABCDEFGHJKLMNPQRSTUVWXYZ23456789"  # none of which is taken for another
_USER_CODE_LETTERS = 9


@dataclass(slots=True)
class DeviceCode:
    """A sign-in that a client waits for. `scope` is a v1 resource where the client asked in v1.

    `user_id` is the object ID of the user who entered the code, "" before. `expires_at` is in Unix seconds.
    """

    client_id: str
    application_name: str
    scope: str
    expires_at: float
    user_id: str = ""
    is_declined: bool = False
    user_code: str = field(default_factory=lambda: "".join(secrets.choice(_LETTERS) for _ in range(_USER_CODE_LETTERS)))
    device_code: str = field(default_factory=lambda: secrets.token_urlsafe(64), repr=False)


class DeviceCodes:
    """The codes that clients wait for. An old one gives way when there are too many."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._by_device_code: BoundedDict[str, DeviceCode] = BoundedDict(CODES_LIMIT)

    def issue(self, client_id: str, application_name: str, scope: str) -> DeviceCode:
        """Return a new code for a client."""
        code = DeviceCode(client_id, application_name, scope, self._clock() + EXPIRY_SECONDS)
        self._by_device_code[code.device_code] = code
        return code

    def find(self, user_code: str) -> DeviceCode | None:
        """Return the code that a user typed, in whatever case and with spaces or dashes; None when nobody waits."""
        text = "".join(letter for letter in user_code.upper() if letter.isalnum())
        return next(
            (code for code in self._by_device_code.values() if code.user_code == text and self._waits(code)), None
        )

    def redeem(self, form: Mapping[str, str]) -> DeviceCode:
        """Return the code of a client's form once a user has signed in, and forget it. Refuses with 400 before."""
        code = self._by_device_code.get(form.get("device_code") or form.get("code", ""))
        if code is None or code.client_id.lower() != form.get("client_id", "").lower():
            raise answers.entra(400, "bad_verification_code", 70018, "The device code is unknown or was used already.")
        if code.is_declined:
            raise answers.entra(400, "authorization_declined", 65004, "The user declined the sign-in.")
        if not self._is_current(code):
            message = "The provided value for the input parameter 'device_code' is not valid. This code has expired."
            raise answers.entra(400, "expired_token", 70020, message)
        if not code.user_id:
            message = "The request was not authorized by the user yet. The user must enter the code."
            raise answers.entra(400, "authorization_pending", 70016, message)
        del self._by_device_code[code.device_code]
        return code

    def _waits(self, code: DeviceCode) -> bool:
        return self._is_current(code) and not code.user_id and not code.is_declined

    def _is_current(self, code: DeviceCode) -> bool:
        return self._clock() < code.expires_at
