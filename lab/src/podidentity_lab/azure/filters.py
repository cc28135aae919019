"""`$filter` of lists in ARM: comparisons of a resource's fields and tags, joined by `and`.

Which there are: learn.microsoft.com/rest/api/resources/resources/list and .../resource-groups/list.
"""

import re
from dataclasses import dataclass

from podidentity_lab.azure import answers
from podidentity_lab.azure.state import Json

_COMPARISON = re.compile(r"(\w+)\s+(eq|ne)\s+'((?:[^']|'')*)'", re.IGNORECASE)
_SUBSTRING = re.compile(r"substringof\(\s*'((?:[^']|'')*)'\s*,\s*(\w+)\s*\)", re.IGNORECASE)
_START = re.compile(r"startswith\(\s*(\w+)\s*,\s*'((?:[^']|'')*)'\s*\)", re.IGNORECASE)
_FIELDS = {"resourcetype": "type", "name": "name", "location": "location"}
_PIECE = re.compile(r"'(?:[^']|'')*+'?|(?<!\s)\s++and(?=\s)\s*", re.IGNORECASE)
"""A text in quotes, or an `and` outside of quotes: each character is looked at once."""


@dataclass(frozen=True, slots=True)
class Test:
    """One comparison: a field (lower case), how it is compared (`eq`, `ne`, `substring`, `start`), and with what."""

    field: str
    comparison: str
    text: str


def parse(condition: str) -> tuple[Test, ...]:
    """Return the comparisons of a `$filter`, all of which must hold; none for "". Refuses others with 400."""
    return tuple(_test(part) for part in conjuncts(condition))


def conjuncts(condition: str) -> list[str]:
    """Return the parts of a condition that `and` joins, outside of quotes; none for ""."""
    content = condition.strip()
    parts, start = [], 0
    for match in _PIECE.finditer(content):
        if not match[0].startswith("'"):
            parts.append(content[start : match.start()])
            start = match.end()
    return [*parts, content[start:]] if content else []


def matches(tests: tuple[Test, ...], resource: Json) -> bool:
    """Whether a resource fits all comparisons. Names and types compare without case, values of tags with case."""
    tag_names = {test.text.lower() for test in tests if test.field == "tagname"}
    return all(_holds(test, resource, tag_names) for test in tests)


def _test(text: str) -> Test:
    part = text.strip().strip("()") if "(" not in text.strip()[1:] else text.strip()
    for pattern, comparison in ((_COMPARISON, ""), (_SUBSTRING, "substring"), (_START, "start")):
        match = pattern.fullmatch(part)
        if match is None:
            continue
        if comparison == "substring":
            test = Test(match[2].lower(), comparison, match[1].replace("''", "'"))
        else:
            test = Test(
                match[1].lower(), comparison or match[2].lower(), match[match.lastindex or 0].replace("''", "'")
            )
        if test.field in {*_FIELDS, "tagname", "tagvalue", "resourcegroup"}:
            return test
    message = f"The lab does not know the $filter '{text.strip()}'; compare name, resourceType, location, tagName, ..."
    raise answers.arm(400, "InvalidFilterInQueryString", message)


def _holds(test: Test, resource: Json, tag_names: set[str]) -> bool:
    tags: dict[str, str] = resource.get("tags") or {}
    match test.field:
        case "tagname":
            return any(_compare(test, name) for name in tags)
        case "tagvalue":
            values = [value for name, value in tags.items() if not tag_names or name.lower() in tag_names]
            return test.text in values
        case "resourcegroup":
            return _compare(test, f"{resource['id']}////".split("/")[4])
    return _compare(test, str(resource.get(_FIELDS[test.field], "")))


def _compare(test: Test, value: str) -> bool:
    text, candidate = test.text.lower(), value.lower()
    match test.comparison:
        case "ne":
            return candidate != text
        case "substring":
            return text in candidate
        case "start":
            return candidate.startswith(text)
    return candidate == text
