"""The kubeconfig that lets the host's kubectl into the lab."""

import base64
import json


def render(name: str, port: int, ca_pem: bytes, token: str) -> str:
    """Return a kubeconfig for the API on 127.0.0.1:`port`, as JSON, which is YAML: every client reads it."""
    cluster = {
        "server": f"https://127.0.0.1:{port}",
        "certificate-authority-data": base64.b64encode(ca_pem).decode(),
    }
    entry_name = f"podidentity-{name}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": entry_name, "cluster": cluster}],
        "users": [{"name": entry_name, "user": {"token": token}}],
        "contexts": [
            {"name": entry_name, "context": {"cluster": entry_name, "user": entry_name, "namespace": "default"}}
        ],
        "current-context": entry_name,
    }
    return json.dumps(config, indent=2) + "\n"
