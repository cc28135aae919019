"""What an installation may choose. Every field has the default that the checked-in files are generated with."""

from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

GROUP = "aadpodidentity.k8s.io"
VERSION = "v1"
API_VERSION = f"{GROUP}/{VERSION}"

NMI_ACCOUNT = "aad-pod-id-nmi-service-account"
MIC_ACCOUNT = "aad-pod-id-mic-service-account"
ADMIN_SECRET = "aadpodidentity-admin-secret"  # noqa: S105  the Secret's name, not its value


@dataclass(frozen=True, slots=True)
class Images:
    """Image names. The tags are semantic versions above 1.8, because upstream's chart reads its tag as a version."""

    nmi: str = "podidentity/nmi:2.0.0-dev.0"
    mic: str = "podidentity/mic:2.0.0-dev.0"
    demo: str = "mcr.microsoft.com/oss/azure/aad-pod-identity/demo:v1.8.17"


@dataclass(frozen=True, slots=True)
class Installation:
    """One way to install: where, with which images, with or without RBAC, azure.json and MIC."""

    images: Images = Images()
    namespace: str = "default"
    rbac: bool = True
    azure_json: bool = True
    managed: bool = False
