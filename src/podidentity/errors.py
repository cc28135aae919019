"""The whole error tree. The class says whose fault it is; the exit status follows from the class.

    PodIdentityError                1  something failed; the sentence says what
    ├── UsageError                  2  the command line is wrong: fix the flags
    ├── ConfigurationError          2  a file, variable or setting is wrong: fix it
    ├── HostError                   3  this machine lacks a program or a right: install or allow it
    ├── KubernetesError             4  the Kubernetes API refused or did not answer
    │   ├── NotFoundError               404
    │   ├── ForbiddenError              401, 403: the role lacks a right
    │   │   └── TerminatingError            403: the namespace is being deleted
    │   ├── ConflictError               409: somebody else wrote first; read again
    │   ├── GoneError                   410: the resource version is too old; list again
    │   ├── InvalidError                422, 400: the object breaks the schema
    │   ├── MalformedObjectError    1  it answered with an object that cannot be read: fix the object
    │   ├── ThrottledError              429: come back after `retry_after_seconds`
    │   ├── UnreachableError            no answer, or 5xx
    │   └── FencedError                 not sent: this MIC no longer leads
    ├── AzureError                  5  ARM, Entra ID or IMDS refused or did not answer
    └── LabError                    1  the lab could not do what was asked

Every message is one sentence that names the thing and says what to do. The CLI prints it after `error: ` and exits.
"""


class PodIdentityError(Exception):
    """Root of every error that podidentity raises on purpose."""

    exit_status = 1


class UsageError(PodIdentityError):
    """The command line is wrong."""

    exit_status = 2


class ConfigurationError(PodIdentityError):
    """A file, an environment variable or a setting is wrong."""

    exit_status = 2


class HostError(PodIdentityError):
    """This machine lacks a program, a kernel feature or a right."""

    exit_status = 3


class KubernetesError(PodIdentityError):
    """The Kubernetes API refused or did not answer. `status` is the HTTP status, 0 without an answer."""

    exit_status = 4

    def __init__(self, message: str, *, status: int = 0, retry_after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_seconds = retry_after_seconds


class NotFoundError(KubernetesError):
    """404: no such object, or no such kind."""


class ForbiddenError(KubernetesError):
    """401 or 403: the credentials or the role lack a right; the message names it."""


class TerminatingError(ForbiddenError):
    """403: nothing can be created in a namespace that is being deleted."""


class ConflictError(KubernetesError):
    """409: the object exists already, or was changed since it was read."""


class GoneError(KubernetesError):
    """410: the resource version is too old for a watch or a continued list."""


class InvalidError(KubernetesError):
    """400 or 422: the server found the object wrong."""


class MalformedObjectError(KubernetesError):
    """The answer's object cannot be read; `str()` names kind, namespace, name and field.

    Whoever copes with a refusal of the API server copes with this: one object of a tenant's must end no daemon.
    """

    exit_status = 1

    def __init__(self, message: str) -> None:
        super().__init__(message, status=200)


class ThrottledError(KubernetesError):
    """429: too many requests; `retry_after_seconds` is the server's wish."""


class UnreachableError(KubernetesError):
    """No answer, or a 5xx."""


class FencedError(KubernetesError):
    """The write was not sent, because the promise of leadership under which it was decided has run out."""


class AzureError(PodIdentityError):
    """ARM, Entra ID or IMDS refused or did not answer.

    `status` is the HTTP status (0 without an answer; 200 when an operation failed), `code` the service's own error code
    and `service_message` its own words ("" when it gave none), `retry_after_seconds` what its Retry-After asked for.
    """

    exit_status = 5

    def __init__(
        self,
        message: str,
        *,
        status: int = 0,
        code: str = "",
        service_message: str = "",
        retry_after_seconds: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.service_message = service_message
        self.retry_after_seconds = retry_after_seconds


class LabError(PodIdentityError):
    """The lab could not do what was asked."""
