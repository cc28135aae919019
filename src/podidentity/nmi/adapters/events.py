"""Shows users that it works: an Event on the binding when a pod gets its first token.

Whether the role allows events is found out by trying; `kube.events` warns once and holds off.
"""

from podidentity.kube.events import Recorder, Subject
from podidentity.kube.resources import BINDINGS
from podidentity.nmi.answers import Answer

REASON = "FirstToken"


def record_first_token(recorder: Recorder, answer: Answer) -> None:
    """Record on the binding which pod got a token of which identity."""
    pod, identity, binding = answer.pod, answer.identity, answer.binding
    if pod is None or identity is None or binding is None:
        return
    subject = Subject.of_kind(BINDINGS, binding.key, binding.uid)
    recorder.record(subject, "Normal", REASON, f"pod {pod.key} got its first token of AzureIdentity {identity.key}")
