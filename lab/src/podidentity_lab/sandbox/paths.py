"""Paths inside a root that somebody else has filled: links in it are followed as a process in that root would.

Imports little: every container starts through it.
"""

import errno
import os
from pathlib import Path

_LINK_LIMIT = 40  # as the kernel's


def inside(root: str, path: str, *, last_link: bool = True) -> str:
    """Return where `path` is below `root`, every link in it followed within `root`; the end of it may be missing.

    Without `last_link`, a link that is the last part is not followed. Raises `OSError` (ELOOP) for links in a circle.
    """
    parts = [part for part in reversed(path.split("/")) if part not in ("", ".")]
    result: list[str] = []
    links = 0
    while parts:
        part = parts.pop()
        if part == "..":
            del result[-1:]
            continue
        target = "/".join([root, *result, part])
        if (parts or last_link) and Path(target).is_symlink():
            links += 1
            if links > _LINK_LIMIT:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            link = str(Path(target).readlink())
            if link.startswith("/"):
                result = []
            parts += [item for item in reversed(link.split("/")) if item not in ("", ".")]
        else:
            result.append(part)
    return "/".join([root, *result])
