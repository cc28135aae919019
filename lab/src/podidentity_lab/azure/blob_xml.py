"""Blob storage's XML: lists of containers, blobs and blocks, errors, and the list of blocks that makes a blob."""

import email.utils
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree as ET

from podidentity_lab.azure.blob_rules import NO_XML, BlobError, Page
from podidentity_lab.azure.state import Blob, Container

_DEEPEST = 2  # the list, and its entries
_STATES = {"LeaseStatus": "unlocked", "LeaseState": "available"}


class _PlainTree(ET.TreeBuilder):
    """A flat tree without a document type: there entities are declared, and they can grow beyond any memory."""

    depth = 0

    def start(self, *arguments: Any) -> ET.Element:
        """Begin an element; refuse one that is deeper than a list of blocks has them."""
        self.depth += 1
        if self.depth > _DEEPEST:
            raise ET.ParseError("elements are nested too deeply")
        return super().start(*arguments)

    def end(self, *arguments: Any) -> ET.Element:
        """End an element."""
        self.depth -= 1
        return super().end(*arguments)

    def doctype(self, *_: object) -> None:
        """Refuse it. Called before anything in it counts."""
        raise ET.ParseError("a document type is not taken")


def error(code: str, message: str) -> bytes:
    """Return an error's document."""
    return _render(_element("Error", {"Code": code, "Message": message}))


def containers(endpoint: str, items: Mapping[str, Container], page: Page, request: Mapping[str, str]) -> bytes:
    """Return a page of an account's containers; `request` is what it was asked with."""
    root = _results(endpoint, request)
    parent = ET.SubElement(root, "Containers")
    for name in page.names:
        container = items[name]
        properties = {"Last-Modified": http_date(container.modified_at), "Etag": container.etag, **_STATES}
        properties |= {"HasImmutabilityPolicy": "false", "HasLegalHold": "false"}
        item = ET.SubElement(parent, "Container")
        ET.SubElement(item, "Name").text = name
        item.append(_element("Properties", properties))
        item.append(_element("Metadata", container.metadata))
    ET.SubElement(root, "NextMarker").text = page.marker
    return _render(root)


def blobs(endpoint: str, name: str, container: Container, page: Page, request: Mapping[str, str]) -> bytes:
    """Return a page of the blobs of the container called `name`."""
    root = _results(endpoint, request)
    root.set("ContainerName", name)
    parent = ET.SubElement(root, "Blobs")
    for blob_name in page.names:
        item = ET.SubElement(parent, "Blob")
        ET.SubElement(item, "Name").text = blob_name
        blob = container.blobs[blob_name]
        item.append(_element("Properties", _properties(blob)))
        if "metadata" in request.get("include", ""):
            item.append(_element("Metadata", blob.metadata))
    for prefix in page.prefixes:
        parent.append(_element("BlobPrefix", {"Name": prefix}))
    ET.SubElement(root, "NextMarker").text = page.marker
    return _render(root)


def blocks(committed_blocks: Mapping[str, int], uncommitted_blocks: Mapping[str, int]) -> bytes:
    """Return the blocks of a blob, sizes in bytes by ID."""
    root = ET.Element("BlockList")
    for title, sizes in (("CommittedBlocks", committed_blocks), ("UncommittedBlocks", uncommitted_blocks)):
        parent = ET.SubElement(root, title)
        for block_id, size in sizes.items():
            parent.append(_element("Block", {"Name": block_id, "Size": str(size)}))
    return _render(root)


def block_list(body: bytes) -> list[tuple[str, str]]:
    """Return the entries of a Put Block List: pairs of Latest, Committed or Uncommitted and an ID.

    Raises `BlobError`.
    """
    try:
        root = ET.fromstring(body, ET.XMLParser(target=_PlainTree()))  # noqa: S314  # has no entities: see there
    except ET.ParseError:
        raise BlobError(400, "InvalidXmlDocument", "XML specified is not syntactically valid.") from None
    return [(entry.tag, (entry.text or "").strip()) for entry in root]


def http_date(seconds: float) -> str:
    """Return a time as HTTP headers have it."""
    return email.utils.formatdate(seconds, usegmt=True)


def _properties(blob: Blob) -> dict[str, str]:
    return {
        "Creation-Time": http_date(blob.created_at),
        "Last-Modified": http_date(blob.modified_at),
        "Etag": blob.etag.strip('"'),
        "Content-Length": str(len(blob.content)),
        **{name: blob.headers.get(name, "") for name in ("Content-Type", "Content-Encoding", "Content-Language")},
        "Content-MD5": blob.headers.get("Content-MD5", ""),
        "Cache-Control": blob.headers.get("Cache-Control", ""),
        "Content-Disposition": blob.headers.get("Content-Disposition", ""),
        "BlobType": "BlockBlob",
        "AccessTier": "Hot",
        "AccessTierInferred": "true",
        **_STATES,
        "ServerEncrypted": "true",
    }


def _results(endpoint: str, request: Mapping[str, str]) -> ET.Element:
    root = ET.Element("EnumerationResults", {"ServiceEndpoint": endpoint})
    for title in ("Prefix", "Marker", "MaxResults", "Delimiter"):
        if value := request.get(title.lower()):
            ET.SubElement(root, title).text = _text(value)
    return root


def _element(title: str, values: Mapping[str, str]) -> ET.Element:
    element = ET.Element(title)
    for name, value in values.items():
        ET.SubElement(element, name).text = _text(value)
    return element


def _text(value: str) -> str:
    """Return a text of a client's as XML can hold it."""
    return NO_XML.sub("\N{REPLACEMENT CHARACTER}", value)


def _render(root: ET.Element) -> bytes:
    document: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return document
