"""The kubeconfig that lets the host's kubectl into the lab. Called by `inside`."""

import base64
import json


def render(name: str, port: int, ca_pem: bytes, token: str) -> str:
    """Write a kubeconfig for the API on 127.0.0.1:`port`. JSON is YAML, and every client reads it."""
    cluster = {
        "server": f"https://127.0.0.1:{port}",
        "certificate-authority-data": base64.b64encode(ca_pem).decode(),
    }
    called = f"podidentity-{name}"
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": called, "cluster": cluster}],
        "users": [{"name": called, "user": {"token": token}}],
        "contexts": [{"name": called, "context": {"cluster": called, "user": called, "namespace": "default"}}],
        "current-context": called,
    }
    return json.dumps(config, indent=2) + "\n"
