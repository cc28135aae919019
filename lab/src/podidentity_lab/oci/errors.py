"""What is wrong with an image or an archive of images."""

from podidentity.errors import LabError


class ImageError(LabError):
    """An archive, a layer, a manifest or a name that the lab does not take; the sentence says which and why."""
