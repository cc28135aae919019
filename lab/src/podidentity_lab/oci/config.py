"""What an image says of its program: entry point, command, environment, user, working directory. Pure.

The fields are those of the image specification (config.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from podidentity_lab.oci.archive import architecture
from podidentity_lab.oci.errors import ImageError


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """An image's program. `user` is as written: empty, a name or a number, and perhaps `:GROUP`."""

    entry_point: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    user: str = ""
    working_directory: str = "/"


@dataclass(frozen=True, slots=True)
class User:
    """A user of an image: numbers, the groups besides its own, and the home directory."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


def parse(configuration: Mapping[str, Any]) -> ImageConfig:
    """Return an image's program. Raises `ImageError` for another kind of machine, or a field of another type."""
    pair = (configuration.get("os") or "linux", configuration.get("architecture") or architecture())
    if pair != ("linux", architecture()):
        message = f"the image is for {pair[0]}/{pair[1]}; build it for linux/{architecture()}"
        raise ImageError(message)
    values = configuration.get("config") or {}
    if not isinstance(values, dict):
        raise ImageError("the image's configuration is no object; build the image again")
    variables = (item.partition("=") for item in _words(values, "Env"))
    return ImageConfig(
        _words(values, "Entrypoint"),
        _words(values, "Cmd"),
        {name: value for name, _, value in variables if name},
        str(values.get("User") or ""),
        str(values.get("WorkingDir") or "/"),
    )


def diff_ids(configuration: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the digests of an image's layers, uncompressed, from the lowest."""
    filesystem = configuration.get("rootfs")
    return _words(filesystem, "diff_ids") if isinstance(filesystem, dict) else ()


def user_of(text: str, passwd: str, group: str) -> User:
    """Return the user that `text` names (`NAME`, `UID`, with or without `:GROUP`) by an image's passwd and group file.

    A number needs no entry. Raises `ImageError` for a name without one.
    """
    name, _, group_name = text.partition(":")
    name = name or "0"
    users = [line.split(":") for line in passwd.splitlines() if line.count(":") >= 6]
    groups = [line.split(":") for line in group.splitlines() if line.count(":") >= 3]
    entry = next((user for user in users if name in (user[0], user[2])), None)
    if entry is None and not name.isdecimal():
        raise ImageError(f"user {name!r}: the image's /etc/passwd has no such user; set runAsUser to a number")
    uid = int(entry[2]) if entry else int(name)
    gid = int(entry[3]) if entry else 0
    if group_name.isdecimal():
        gid = int(group_name)
    elif group_name:
        numbers = [int(item[2]) for item in groups if item[0] == group_name]
        if not numbers:
            raise ImageError(f"group {group_name!r}: the image's /etc/group has no such group; set runAsGroup")
        gid = numbers[0]
    memberships = tuple(int(item[2]) for item in groups if entry and entry[0] in item[3].split(","))
    return User(uid, gid, memberships if not group_name else (), entry[5] if entry and entry[5] else "/")


def _words(values: Mapping[str, Any], name: str) -> tuple[str, ...]:
    words = values.get(name) or []
    if not isinstance(words, list):
        raise ImageError(f"{name}: it is no list in the image's configuration; build the image again")
    return tuple(map(str, words))
