"""Kubeconfigs of the real cluster's components: who each is, where the API is."""

import json
from pathlib import Path

from podidentity_lab.fabric import FABRIC_ADDRESS
from podidentity_lab.orchestrator import KUBERNETES_PORT
from podidentity_lab.real.pki import Pki


def write(pki: Pki, user: str, folder: Path) -> str:
    """Write the kubeconfig of `user` below `folder`; return its path."""
    cluster = {"server": f"https://{FABRIC_ADDRESS}:{KUBERNETES_PORT}", "certificate-authority": pki.path("ca.crt")}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": user, "user": {"token": pki.tokens[user]}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
        "current-context": "lab",
    }
    path = folder / f"{user.replace(':', '-')}.kubeconfig"
    path.touch(0o600)
    path.write_text(json.dumps(config))
    return str(path)
