"""What the lab's Blob storage decides: conditions, ranges, pages, blocks, rights."""

import email.utils

import pytest

from podidentity_lab.azure import blob_rights, blob_rules
from podidentity_lab.azure.blob_rules import BlobError, Page, Selection, Unmet
from podidentity_lab.azure.state import Blob

MODIFIED_AT = 1_700_000_000
BLOB = Blob(b"onetwo", '"0x1"', MODIFIED_AT, MODIFIED_AT, {}, {}, {"b25l": 3, "dHdv": 3})
PAST, SAME, FUTURE = (email.utils.formatdate(MODIFIED_AT + seconds, usegmt=True) for seconds in (-60, 0, 60))


@pytest.mark.parametrize(
    ("headers", "blob", "read", "write"),
    [
        ({}, BLOB, None, None),
        ({"if-match": '"0x1"'}, BLOB, None, None),
        ({"if-match": "*"}, BLOB, None, None),
        ({"if-match": '"0x2"'}, BLOB, Unmet(412, "ConditionNotMet"), Unmet(412, "ConditionNotMet")),
        ({"if-match": "*"}, None, Unmet(412, "ConditionNotMet"), Unmet(412, "ConditionNotMet")),
        ({"if-none-match": '"0x1"'}, BLOB, Unmet(304, "ConditionNotMet"), Unmet(412, "ConditionNotMet")),
        ({"if-none-match": '"0x2"'}, BLOB, None, None),
        ({"if-none-match": "*"}, BLOB, Unmet(304, "ConditionNotMet"), Unmet(409, "BlobAlreadyExists")),
        ({"if-none-match": "*"}, None, None, None),
        ({"if-modified-since": SAME}, BLOB, Unmet(304, "ConditionNotMet"), Unmet(412, "ConditionNotMet")),
        ({"if-modified-since": PAST}, BLOB, None, None),
        ({"if-unmodified-since": PAST}, BLOB, Unmet(412, "ConditionNotMet"), Unmet(412, "ConditionNotMet")),
        ({"if-unmodified-since": FUTURE}, BLOB, None, None),
    ],
)
def test_a_condition_holds_or_says_how_it_does_not(
    headers: dict[str, str], blob: Blob | None, read: Unmet | None, write: Unmet | None
) -> None:
    """A read that would bring nothing new is 304; a write over an existing blob is 409, over a changed one 412."""
    assert blob_rules.unmet_condition(headers, blob, is_read=True) == read
    assert blob_rules.unmet_condition(headers, blob, is_read=False) == write


def test_a_date_that_is_none_is_refused() -> None:
    """The error shows the text that is no date."""
    with pytest.raises(BlobError, match="'yesterday' is not a date of HTTP") as refusal:
        blob_rules.unmet_condition({"if-modified-since": "yesterday"}, BLOB, is_read=True)
    assert (refusal.value.status, refusal.value.code) == (400, "InvalidHeaderValue")


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", None), ("bytes=0-", (0, 10)), ("bytes=2-3", (2, 4)), ("bytes=8-99", (8, 10)), ("bytes=-3", None)],
)
def test_a_range_ends_where_the_blob_ends(text: str, expected: tuple[int, int] | None) -> None:
    """A range is cut at the blob's end; a form that Azure does not support is ignored, as in HTTP."""
    assert blob_rules.byte_range(text, 10) == expected


@pytest.mark.parametrize(("text", "size"), [("bytes=10-", 10), ("bytes=0-5", 0), ("bytes=3-2", 10)])
def test_a_range_behind_the_end_is_refused(text: str, size: int) -> None:
    """SDKs request a range of an empty blob, and the whole blob after the 416."""
    with pytest.raises(BlobError) as refusal:
        blob_rules.byte_range(text, size)
    assert (refusal.value.status, refusal.value.code) == (416, "InvalidRange")


NAMES = ["b", "a/2", "a/1", "c/x/1", "c/y"]


def test_a_list_is_sorted_and_begins_with_its_prefix() -> None:
    """Without a delimiter all names with the prefix are listed in order."""
    assert blob_rules.page(NAMES, Selection(), 0) == Page(("a/1", "a/2", "b", "c/x/1", "c/y"), (), "")
    assert blob_rules.page(NAMES, Selection(prefix="c/"), 0).names == ("c/x/1", "c/y")


def test_a_delimiter_makes_folders() -> None:
    """Each folder is listed once, at every depth."""
    assert blob_rules.page(NAMES, Selection(delimiter="/"), 0) == Page(("b",), ("a/", "c/"), "")
    assert blob_rules.page(NAMES, Selection("c/", "/"), 0) == Page(("c/y",), ("c/x/",), "")


@pytest.mark.parametrize("delimiter", ["", "/"])
@pytest.mark.parametrize("limit", [1, 2, 3])
def test_pages_together_are_the_list(delimiter: str, limit: int) -> None:
    """No name is lost or repeated, and no page is longer than its limit."""
    entries: list[str] = []
    marker = ""
    for _ in range(10):
        page = blob_rules.page(NAMES, Selection("", delimiter, marker), limit)
        assert 0 < len(page.names) + len(page.prefixes) <= limit
        entries += [*page.names, *page.prefixes]
        marker = page.marker
        if not marker:
            break
    everything = blob_rules.page(NAMES, Selection(delimiter=delimiter), 0)
    assert sorted(entries) == sorted([*everything.names, *everything.prefixes])


def test_blocks_are_joined_in_the_lists_order() -> None:
    """Each block is the committed, the uncommitted or the latest one, as its entry says."""
    uncommitted = {"dHdv": b"TWO", "bmV3": b"new"}
    entries = [("Uncommitted", "bmV3"), ("Committed", "dHdv"), ("Latest", "dHdv"), ("Latest", "b25l")]
    content, sizes = blob_rules.join_blocks(entries[:2], BLOB, uncommitted)
    assert (content, sizes) == (b"newtwo", {"bmV3": 3, "dHdv": 3})
    assert blob_rules.join_blocks(entries[2:], BLOB, uncommitted)[0] == b"TWOone"
    for entry in (("Committed", "bmV3"), ("Uncommitted", "b25l"), ("Newest", "b25l")):
        with pytest.raises(BlobError, match="block list is invalid"):
            blob_rules.join_blocks([entry], BLOB, uncommitted)
    with pytest.raises(BlobError):
        blob_rules.join_blocks([("Committed", "b25l")], None, uncommitted)


@pytest.mark.parametrize("name", ["ab", "Upper", "a--b", "-ab", "a_b", "x" * 64])
def test_a_container_has_azures_names(name: str) -> None:
    """Names that Azure does not accept are refused."""
    with pytest.raises(BlobError, match="container name"):
        blob_rules.check_container_name(name)


def test_names_and_ids_have_limits() -> None:
    """The names of blobs and the IDs of blocks have Azure's limits."""
    blob_rules.check_container_name("a-1")
    blob_rules.check_blob_name("x" * 1024)
    with pytest.raises(BlobError, match="at most 1024"):
        blob_rules.check_blob_name("x" * 1025)
    blob_rules.check_block_id("b25l")
    for block_id in ("", "no base64!", "QUFB" * 22):
        with pytest.raises(BlobError, match="is not base64"):
            blob_rules.check_block_id(block_id)
    assert blob_rules.is_account_name("store1")
    assert not blob_rules.is_account_name("Store-1")


@pytest.mark.parametrize(
    ("method", "query", "blob", "right"),
    [
        ("GET", {"comp": "list"}, "", "containers/read"),
        ("GET", {"comp": "list", "restype": "container"}, "", "blobs/read"),
        ("HEAD", {"restype": "container"}, "", "containers/read"),
        ("PUT", {"restype": "container"}, "", "containers/write"),
        ("DELETE", {"restype": "container"}, "", "containers/delete"),
        ("HEAD", {}, "a/b", "blobs/read"),
        ("PUT", {"comp": "block"}, "a/b", "blobs/write"),
        ("DELETE", {}, "a/b", "blobs/delete"),
    ],
)
def test_each_request_needs_one_right(method: str, query: dict[str, str], blob: str, right: str) -> None:
    """Containers need rights of control (actions), blobs rights on data (data actions)."""
    assert blob_rights.right_of(method, query, blob) == right
