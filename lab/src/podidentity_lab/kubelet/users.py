"""As whom a container of an unpacked image runs: read from the /etc/passwd and /etc/group in that image."""

from pathlib import Path

from podidentity_lab.images import Image
from podidentity_lab.kubelet.environment import ContainerConfigError
from podidentity_lab.kubelet.node import Json
from podidentity_lab.oci import config
from podidentity_lab.oci.config import User
from podidentity_lab.oci.errors import ImageError
from podidentity_lab.sandbox.paths import inside

FILE_LIMIT_BYTES = 1 << 20


def user_of(image: Image, context: Json) -> User:
    """Return the image's user, or who `runAsUser` of the security context is in it. Raises `ContainerConfigError`.

    With `runAsNonRoot` a kubelet takes no user by name: it does not read the image's files.
    """
    if image.root is None:
        return User(0, 0)
    run_as_user = context.get("runAsUser")
    text = image.user if run_as_user is None else str(run_as_user)
    name = text.partition(":")[0]
    if context.get("runAsNonRoot") and name and not name.isdecimal():
        message = f"container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
        raise ContainerConfigError(f"{message}; set runAsUser to a number")
    try:
        return config.user_of(text, _text(image.root, "/etc/passwd"), _text(image.root, "/etc/group"))
    except ImageError as error:
        raise ContainerConfigError(str(error)) from None


def _text(root: Path, path: str) -> str:
    """Return the beginning of a file of the image; "" without one. A pipe is none: to open it would wait for ever."""
    try:
        place = Path(inside(str(root), path))
        if not place.is_file():
            return ""
        with place.open("rb") as file:
            return file.read(FILE_LIMIT_BYTES).decode(errors="replace")
    except OSError:
        return ""
