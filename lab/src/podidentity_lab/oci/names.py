"""Names of images, as Kubernetes and Docker read them: `localhost:5000/team/app:1.2`, `app`, `app@sha256:...`.

The rules are those of github.com/distribution/reference: a first part with a dot, a colon or `localhost` is a registry;
otherwise the registry is docker.io, whose one-part repositories are below `library/`; the tag is `latest` where neither
tag nor digest is given.
"""

import re
from dataclasses import dataclass
from urllib.parse import quote

from podidentity_lab.oci.errors import ImageError

DEFAULT_HOST = "docker.io"
DEFAULT_TAG = "latest"
NAME_LIMIT = 200
"""Characters of a name."""
FILE_NAME_LIMIT = 255
"""Bytes of a file's name on Linux: a name in full becomes one, slashes and colons written as three each."""

_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
REPOSITORY = re.compile(rf"{_PART}(?:/{_PART})*")
TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_HOST = re.compile(r"(?:[A-Za-z0-9][A-Za-z0-9.-]*|\[[0-9A-Fa-f:]+\])(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Name:
    """An image's name with all its parts. `tag` and `digest` are empty where the name has none, never both."""

    host: str
    repository: str
    tag: str
    digest: str = ""

    def __str__(self) -> str:
        """Return the name in full, without the tag where there is a digest."""
        return f"{self.host}/{self.repository}" + (f"@{self.digest}" if self.digest else f":{self.tag}")


def is_file_name(text: str) -> bool:
    """Whether a file can be called by a name in full."""
    return len(quote(text, safe="")) <= FILE_NAME_LIMIT


def parse(text: str) -> Name:
    """Return the parts of a name. Raises `ImageError`."""
    base, _, digest = text.partition("@")
    head, slash, path = base.partition("/")
    if not slash or not ("." in head or ":" in head or head == "localhost"):
        head, path = DEFAULT_HOST, base
    folder, _, last = path.rpartition("/")
    last, colon, tag = last.partition(":")
    repository = f"{folder}/{last}" if folder else last
    if head == DEFAULT_HOST and "/" not in repository:
        repository = f"library/{repository}"
    tag = tag if colon else "" if digest else DEFAULT_TAG
    is_name = _HOST.fullmatch(head) and REPOSITORY.fullmatch(repository) and len(text) <= NAME_LIMIT
    is_tagged, is_digested = bool(tag or colon), "@" in text
    if not is_name or (is_tagged and not TAG.fullmatch(tag)) or (is_digested and not DIGEST.fullmatch(digest)):
        raise ImageError(f"image name {text!r}: it is no name of an image; write NAME:TAG in lower case")
    name = Name(head, repository, tag, digest)
    if not is_file_name(str(name)):
        raise ImageError(f"image name {text!r}: it is no name of an image that the lab can keep; write a shorter one")
    return name
