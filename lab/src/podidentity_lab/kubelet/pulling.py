"""Which image a container gets, by its name and its `imagePullPolicy`, in the words that a kubelet has for it.

The policies are Kubernetes' (kubernetes.io/docs/concepts/containers/images): a node has what was loaded into the lab
and what it has pulled from the lab's registry. Programs of this machine (`images`) are on every node, too. `Always`
works with what was loaded where the name is not one of the lab's registry: there is nothing else to pull from.
"""

from podidentity_lab import images
from podidentity_lab.images import Image
from podidentity_lab.kubelet.node import Json, Node
from podidentity_lab.oci import names
from podidentity_lab.oci.errors import ImageError


class PullError(Exception):
    """A container's image cannot be had. `reason` is what the container's state says: `ErrImagePull` or another.

    The sentence is a kubelet's, for the pod's status: nobody else sees it.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def pull_policy(container: Json, name: names.Name) -> str:
    """Return a container's `imagePullPolicy`, by default `Always` for the tag `latest`, else `IfNotPresent`."""
    default = "Always" if name.tag == names.DEFAULT_TAG else "IfNotPresent"
    return str(container.get("imagePullPolicy") or default)


async def find(node: Node, container: Json) -> Image:
    """Return a container's image. Raises `PullError`."""
    text = str(container["image"])
    try:
        name = names.parse(text)
    except ImageError as error:
        raise PullError("InvalidImageName", f'Failed to apply default image tag "{text}": {error}') from None
    digest = _digest(node, name, pull_policy(container, name))
    if digest is None:
        return _program(text, pull_policy(container, name))
    try:
        return images.unpacked(await node.cluster.library.image(digest))
    except ImageError as error:
        raise PullError("ErrImagePull", f'Failed to pull image "{text}": {error}') from None


def _digest(node: Node, name: names.Name, policy: str) -> str | None:
    """Return the digest of the manifest that a name means to this node now; None when it has none and gets none."""
    library = node.cluster.library
    present = library.find_loaded(name) or node.pulled_images.get(str(name))
    if policy == "Never" or (policy == "IfNotPresent" and present):
        return present
    pushed = library.find_pushed(name)
    if pushed is not None:
        node.pulled_images[str(name)] = pushed
    return pushed or (None if library.is_pushed_here(name) else present)


def _program(text: str, policy: str) -> Image:
    """Return a program of this machine by an image's name. Raises `PullError`."""
    image = images.find(text)
    if image is not None:
        return image
    if policy == "Never":
        message = (
            f'Container image "{text}" is not present with pull policy of Never; bring it with `podidentity lab load`'
        )
        raise PullError("ErrImageNeverPull", message)
    raise PullError("ErrImagePull", f'Failed to pull image "{text}": {images.unknown(text)}')
