"""docs/reference/answers.md: what NMI and the broker answer when they give no token."""

from collections import defaultdict

from references.source import HOLE, PRODUCT, calls, table

INTRODUCTION = f"""\
# Answers that are no token

Written by tools/reference.py from the code: every status and sentence that NMI (and the broker, where it is named)
answers with. `{HOLE}` stands for what is registry in. The answer is JSON, as IMDS and Entra ID write it: `error` for
programs, `error_description` for people. A 503 has `Retry-After`. What to do about each:
[a pod gets no token](../troubleshoot/no-token.md). What is answered with a token:
[NMI's listener](http-conformance.md).
"""
MEANINGS = {
    400: "the request is wrong, or asks for an identity that the pod does not have",
    401: "the caller has not proved who it is",
    403: "not allowed, or IMDS or Entra ID refused; their text is passed on",
    404: "there is no such path, pod or identity",
    405: "another method than GET",
    408: "the request did not arrive in time",
    413: "the request is too large",
    414: "the target is too long",
    429: "too many requests; `Retry-After` says when to come back",
    431: "the head is too long",
    500: "a mistake of podidentity's own; please report it",
    502: "Azure answered with something that cannot be understood",
    503: "not now; `Retry-After` says when to come back",
    504: "Azure did not answer in time",
}
REFUSAL = "Refusal"
"""The class of an answer: its status comes first, its sentence after it, or after OAuth's code for the error."""


def page() -> str:
    """Return the whole page."""
    text = INTRODUCTION
    for status, sentences in sorted(answers().items()):
        text += f"\n## {status}: {MEANINGS[status]}\n\n"
        text += table(
            ("sentence", "from"), [(sentence, f"`{module}`") for sentence, module in sorted(sentences.items())]
        )
    return text


def answers() -> dict[int, dict[str, str]]:
    """Return each status with its sentences, and the module of each."""
    sentences: defaultdict[int, dict[str, str]] = defaultdict(dict)
    for call in calls(PRODUCT):
        if call.name != REFUSAL or not call.node.args:
            continue
        status = getattr(call.node.args[0], "value", None)
        texts = [call.texts(position) for position in (1, 2)]
        for sentence in texts[1] or texts[0]:
            if isinstance(status, int):
                sentences[status].setdefault(sentence, call.module.removeprefix("podidentity/"))
    return sentences
