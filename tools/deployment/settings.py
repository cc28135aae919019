"""What an installation may choose. Every field has the default that the checked-in files are generated with."""

from dataclasses import dataclass, fields, replace
from typing import Any

Json = dict[str, Any]

GROUP = "aadpodidentity.k8s.io"
VERSION = "v1"
API_VERSION = f"{GROUP}/{VERSION}"

NMI_ACCOUNT = "aad-pod-id-nmi-service-account"
MIC_ACCOUNT = "aad-pod-id-mic-service-account"
LOCK = "aad-pod-identity-mic"
LOCK_NAMESPACE = "default"
LOCAL = "podidentity"
"""What the names of our own images begin with until they are published."""
RECORD = "aad-pod-identity-config"
ADMIN_SECRET = "aadpodidentity-admin-secret"  # noqa: S105  the Secret's name, not its value


@dataclass(frozen=True, slots=True)
class Images:
    """Image names. The tags are semantic versions above 1.8, because upstream's chart reads its tag as a version."""

    nmi: str = "podidentity/nmi:2.0.0-rc.1"
    mic: str = "podidentity/mic:2.0.0-rc.1"
    broker: str = "podidentity/broker:2.0.0-rc.1"
    webhook: str = "podidentity/webhook:2.0.0-rc.1"
    demo: str = "mcr.microsoft.com/oss/azure/aad-pod-identity/demo:v1.8.17"

    def by_name(self) -> dict[str, str]:
        """Return the images by the names that options give them: nmi, mic, ..."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def local(self) -> tuple[str, ...]:
        """Return the images that this repository makes."""
        return tuple(image for image in self.by_name().values() if image.startswith(f"{LOCAL}/"))

    def published(self, registry: str) -> "Images":
        """Return the names under which a release publishes what this repository makes; others stay."""
        names = {name: image for name, image in self.by_name().items() if image in self.local()}
        return replace(self, **{name: f"{registry}/{image.removeprefix(f'{LOCAL}/')}" for name, image in names.items()})


@dataclass(frozen=True, slots=True)
class Installation:
    """One way to install: where, with which images, with or without RBAC, azure.json and MIC.

    `namespaced`: pods use identities of their own namespace alone. `every_secret`: NMI may read Secrets everywhere, as
    upstream's may, so that nobody's service principal ends with a swap.
    """

    images: Images = Images()
    namespace: str = "default"
    rbac: bool = True
    azure_json: bool = True
    managed: bool = False
    namespaced: bool = False
    every_secret: bool = True
    startup_taint: bool = False
    broker: bool = False
    """NMI has its tokens from the broker of `deploy/broker`, and serves the token-file door."""
