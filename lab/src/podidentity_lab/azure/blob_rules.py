"""Blob storage's decisions, without HTTP: names, conditions of requests, ranges, pages of names, lists of blocks.

Facts: learn.microsoft.com/rest/api/storageservices. A decision against a request is an `Unmet`, or a `BlobError` where
there is one answer only.
"""

import base64
import binascii
import email.utils
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from podidentity_lab.azure.state import Blob

_ACCOUNT_NAME = re.compile("[a-z0-9]{3,24}")
_CONTAINER_NAME = re.compile("(?!.*--)[a-z0-9][a-z0-9-]{1,61}[a-z0-9]|[$]root|[$]web")
_LONGEST_BLOB_NAME = 1024
_LONGEST_BLOCK_ID_BYTES = 64
_LARGEST_PAGE = 5000
_METADATA_NAME = re.compile("[A-Za-z_][A-Za-z0-9_]*")
_COUNT = re.compile("[0-9]{1,9}")
_RANGE = re.compile("bytes=([0-9]{1,40})-([0-9]{0,40})")
NO_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
"""Characters that XML 1.0 cannot hold, not even escaped."""
LARGEST_BLOB = 2 * 2**30
"""Bytes; Azure takes 190 TiB, but all of this is in memory, and a short list of blocks can name each one often."""
MOST_UNCOMMITTED_BLOCKS = 100_000
MOST_BLOCKS = 50_000  # learn.microsoft.com/rest/api/storageservices/put-block-list


class BlobError(Exception):
    """A refusal: HTTP status, `x-ms-error-code` and a sentence."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass(frozen=True, slots=True)
class Unmet:
    """A condition of the request does not hold: 304 for reads that would bring nothing new, else 409 or 412."""

    status: int
    code: str


@dataclass(frozen=True, slots=True)
class Selection:
    """Which names a list asks for: those that begin with `prefix`, from `marker` on, grouped by `delimiter`."""

    prefix: str = ""
    delimiter: str = ""
    marker: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """Some names of a list: blobs, and with a delimiter the prefixes that stand for several.

    `marker` is where the next page begins, "" after the last one.
    """

    names: tuple[str, ...]
    prefixes: tuple[str, ...]
    marker: str


def is_account_name(name: str) -> bool:
    """Whether a storage account may have this name: 3 to 24 lower-case letters and digits."""
    return _ACCOUNT_NAME.fullmatch(name) is not None


def check_container_name(name: str) -> None:
    """Raise `BlobError` unless a container may have this name."""
    if not _CONTAINER_NAME.fullmatch(name):
        message = (
            f"The container name '{name}' is invalid: use 3 to 63 lower-case letters, digits and single hyphens, "
            "with a letter or digit first and last."
        )
        raise BlobError(400, "InvalidResourceName", message)


def check_blob_name(name: str) -> None:
    """Raise `BlobError` unless a blob may have this name."""
    if len(name) > _LONGEST_BLOB_NAME:
        raise BlobError(400, "InvalidResourceName", f"A blob's name has at most {_LONGEST_BLOB_NAME} characters.")
    if NO_XML.search(name):
        message = "A blob's name has no control characters: a list, which is XML, could not show it."
        raise BlobError(400, "InvalidResourceName", message)


def check_metadata(names: Iterable[str]) -> None:
    """Raise `BlobError` unless all are names that metadata may have, which lists show as XML elements."""
    for name in names:
        if not _METADATA_NAME.fullmatch(name):
            message = f"The metadata name '{name}' is invalid: use letters, digits and '_', with no digit first."
            raise BlobError(400, "InvalidMetadata", message)


def page_size(text: str) -> int:
    """Return how many names a page has by `maxresults`: 0 for as many as fit. Raises `BlobError`."""
    if not text:
        return 0
    if not _COUNT.fullmatch(text) or int(text) == 0:
        message = f"maxresults is '{text[:20]}'; it is a number from 1 on."
        raise BlobError(400, "OutOfRangeQueryParameterValue", message)
    return int(text)


def unmet_condition(headers: Mapping[str, str], blob: Blob | None, *, is_read: bool) -> Unmet | None:
    """Return the first condition of a request that does not hold for `blob`, None when all hold.

    `headers` may have If-Match, If-None-Match, If-Modified-Since and If-Unmodified-Since; `blob` is None where there is
    none yet.
    """
    modified_at = blob.modified_at if blob else 0
    match, none_match = headers.get("if-match", ""), headers.get("if-none-match", "")
    unmodified_since = _seconds(headers.get("if-unmodified-since", ""))
    if match and (blob is None or match not in {"*", blob.etag}):
        return Unmet(412, "ConditionNotMet")
    if unmodified_since is not None and modified_at > unmodified_since:
        return Unmet(412, "ConditionNotMet")
    if blob is None:
        return None
    if none_match == "*" and not is_read:
        return Unmet(409, "BlobAlreadyExists")
    since = _seconds(headers.get("if-modified-since", ""))
    if none_match in {"*", blob.etag} or (since is not None and modified_at <= since):
        return Unmet(304 if is_read else 412, "ConditionNotMet")
    return None


def byte_range(text: str, size: int) -> tuple[int, int] | None:
    """Return the first byte and the end (exclusive) that a Range header asks for; None: everything.

    Raises `BlobError` for a range that begins behind the end of the blob's `size` bytes.
    """
    match = _RANGE.fullmatch(text.strip())
    if match is None:
        return None
    start, end = int(match[1]), min(int(match[2]) + 1 if match[2] else size, size)
    if start >= size or end <= start:
        raise BlobError(416, "InvalidRange", "The range specified is invalid for the current size of the resource.")
    return start, end


def page(names: Sequence[str], selection: Selection, limit: int) -> Page:
    """Return the selected names, at most `limit` (0: as many as a page has).

    With a delimiter, names that have it behind the prefix count as one: their common beginning.
    """
    blobs: list[str] = []
    prefixes: list[str] = []
    prefix, delimiter = selection.prefix, selection.delimiter
    for name in sorted(name for name in names if name.startswith(prefix)):
        head, separator, _ = name[len(prefix) :].partition(delimiter) if delimiter else (name, "", "")
        entry = f"{prefix}{head}{separator}" if separator else name
        if entry < selection.marker or prefixes[-1:] == [entry]:  # names of one beginning stand together
            continue
        if len(blobs) + len(prefixes) == min(limit or _LARGEST_PAGE, _LARGEST_PAGE):
            return Page(tuple(blobs), tuple(prefixes), entry)
        (prefixes if separator else blobs).append(entry)
    return Page(tuple(blobs), tuple(prefixes), "")


def check_block_id(text: str) -> None:
    """Raise `BlobError` unless a block may have this ID: base64 of at most 64 bytes."""
    try:
        length = len(base64.b64decode(text, validate=True))
    except binascii.Error:
        length = 0
    if not 0 < length <= _LONGEST_BLOCK_ID_BYTES:
        raise BlobError(400, "InvalidQueryParameterValue", f"The block ID '{text}' is not base64 of 1 to 64 bytes.")


def check_block_count(uncommitted_blocks: Mapping[str, bytes], block_id: str) -> None:
    """Raise `BlobError` when a blob has as many uncommitted blocks as it may have, and this would be another one."""
    if block_id not in uncommitted_blocks and len(uncommitted_blocks) >= MOST_UNCOMMITTED_BLOCKS:
        message = f"The blob has {MOST_UNCOMMITTED_BLOCKS} uncommitted blocks; put its block list."
        raise BlobError(409, "BlockCountExceedsLimit", message)


def join_blocks(
    entries: Sequence[tuple[str, str]], blob: Blob | None, uncommitted_blocks: Mapping[str, bytes]
) -> tuple[bytes, dict[str, int]]:
    """Return a blob's content of its blocks in order, and their sizes by ID. Raises `BlobError` when one is missing.

    `entries` are pairs of Latest, Committed or Uncommitted and a block's ID: which of the blob's own blocks and of the
    uncommitted ones counts.
    """
    committed_blocks = _blocks_of(blob) if blob else {}
    sources = {
        "Committed": committed_blocks,
        "Uncommitted": uncommitted_blocks,
        "Latest": {**committed_blocks, **uncommitted_blocks},
    }
    if len(entries) > MOST_BLOCKS:
        raise BlobError(400, "BlockListTooLong", f"The block list has more than {MOST_BLOCKS} blocks.")
    parts, size = [], 0
    for kind, block_id in entries:
        if block_id not in sources.get(kind, {}):
            raise BlobError(400, "InvalidBlockList", f"The specified block list is invalid: no {kind} '{block_id}'.")
        parts.append((block_id, sources[kind][block_id]))
        size += len(sources[kind][block_id])
        if size > LARGEST_BLOB:
            raise BlobError(413, "RequestBodyTooLarge", f"A blob of the lab has at most {LARGEST_BLOB} bytes.")
    return b"".join(part for _, part in parts), {block_id: len(part) for block_id, part in parts}


def _blocks_of(blob: Blob) -> dict[str, bytes]:
    blocks, offset = {}, 0
    for block_id, size in blob.blocks.items():
        blocks[block_id] = blob.content[offset : offset + size]
        offset += size
    return blocks


def _seconds(text: str) -> float | None:
    """Return an HTTP date in Unix seconds, None without one."""
    try:
        return email.utils.parsedate_to_datetime(text).timestamp() if text else None
    except (ArithmeticError, IndexError, OSError, TypeError, ValueError):
        raise BlobError(400, "InvalidHeaderValue", f"'{text}' is not a date of HTTP.") from None
