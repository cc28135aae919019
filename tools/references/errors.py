"""docs/reference/errors.md: every sentence with which a command can end."""

from collections import defaultdict

from podidentity import errors
from references.source import HOLE, LAB, PRODUCT, calls, table

INTRODUCTION = f"""\
# Errors of commands

Written by tools/reference.py from the code. A command that cannot do its work prints `error: ` and one sentence, and
ends with the exit status of the sentence's section. After the semicolon stands what to do. `{HOLE}` is registry in.
"""


def page() -> str:
    """Return the whole page."""
    classes = {
        name: member
        for name, member in vars(errors).items()
        if isinstance(member, type) and issubclass(member, errors.PodIdentityError)
    }
    sentences: defaultdict[str, set[str]] = defaultdict(set)
    for call in (*calls(PRODUCT), *calls(LAB)):
        if call.name in classes and call.node.args:
            sentences[call.name].update(text for text in call.texts(0) if text.replace(HOLE, "").strip(" :;"))
    text = INTRODUCTION
    for name, member in classes.items():
        if sentences[name]:
            text += f"\n## {name}: exit status {member.exit_status}\n\n{(member.__doc__ or '').splitlines()[0]}\n\n"
            text += table(("sentence", "what to do"), [_row(sentence) for sentence in sorted(sentences[name])])
    return text


def _row(sentence: str) -> tuple[str, ...]:
    message, semicolon, advice = sentence.rpartition("; ")
    return (message, advice) if semicolon else (sentence, "")
