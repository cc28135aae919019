"""docs/reference/environment.md: the environment variables that the code reads."""

import ast
import re
from collections import defaultdict
from pathlib import Path

from podidentity.azure import cloud_config
from references.source import LAB, PRODUCT, calls, table

INTRODUCTION = """\
# Environment variables

Written by tools/reference.py from the code: every variable that is read, and by what. Variables in the place of
azure.json: [azure.json](../configure/azure-json.md).
"""
MEANINGS = {
    "AZURE_AUTHORITY_HOST": "Where Entra ID answers, instead of the cloud's own address.",
    "AZURE_CLIENT_ID": "Of a service principal that `podidentity verify` signs in with.",
    "AZURE_CLIENT_SECRET": "Its secret.",
    "AZURE_CLIENT_CERTIFICATE_PASSWORD": "What locks the archive of `AZURE_CLIENT_CERTIFICATE_PATH`.",
    "AZURE_CLIENT_CERTIFICATE_PATH": "A service principal's certificate and key (PKCS#12), in the place of a secret.",
    "AZURE_CONFIG_DIR": "Where az keeps its sign-in, instead of `~/.azure`.",
    "AZURE_ENVIRONMENT": "The Azure cloud, such as `AzureChinaCloud`; empty: the public one.",
    "AZURE_ENVIRONMENT_FILEPATH": "A file with the endpoints of a custom cloud (Azure Stack).",
    "AZURE_KUBERNETES_CA_CTB_LABEL_SELECTOR": "JSON label selector of the ClusterTrustBundles with the proxy's CA.",
    "AZURE_KUBERNETES_SNI_NAME": "The name in the token proxy's certificate; empty: the host of its address.",
    "AZURE_KUBERNETES_TOKEN_PROXY": "Address of the token proxy to which the webhook sends pods; empty: none.",
    "AZURE_TENANT_ID": "Tenant of the identities, or of the service principal of `podidentity verify`.",
    "COLUMNS": "Width of a terminal that does not tell its own.",
    "FORCENAMESPACED": "`true`: as `--forceNamespaced`; aad-pod-identity's manifests set it.",
    "HOST_IP": "The node's address, where pods are answered: redirected ones over IPv4; manifests fill it in.",
    "HTTPS_PROXY": "A proxy for the Kubernetes API and Azure; `NO_PROXY` names what goes without it.",
    "HTTP_PROXY": "The lab's proxy, by which Azure's names lead to the lab; `podidentity lab env` sets it.",
    "KUBECONFIG": "Path of a kubeconfig.",
    "KUBERNETES_SERVICE_HOST": "Set in every pod: the API server's address; its family is that of the cluster.",
    "KUBERNETES_SERVICE_PORT": "Set in every pod: the API server's port.",
    "LAB_LOGS": "Set by `podidentity lab env`: where the lab's logs are.",
    "LAB_NAME": "Which lab commands mean; `podidentity lab env` sets it.",
    "LAB_NODE_RESOURCE_GROUP": "Set by `podidentity lab env`: the resource group of the lab's nodes.",
    "LAB_SUBSCRIPTION_ID": "Set by `podidentity lab env`: the subscription of the lab.",
    "LAB_TENANT_ID": "Set by `podidentity lab env`: the tenant of the lab.",
    "MIC_POD_NAMESPACE": "The namespace in which MIC runs; manifests fill it in.",
    "NODE_NAME": "The node on which NMI runs; manifests fill it in.",
    "NO_COLOR": "Anything: no colours.",
    "PATH": "Where programs are found: `nft`, `ip`, `kubectl`.",
    "PODIDENTITY_LAB_HOME": "Directory of all labs, instead of one below `XDG_RUNTIME_DIR` or `/tmp`.",
    "PODIDENTITY_LAB_IMAGES": "More images for the lab: `NAME=DIRECTORY`, comma-separated.",
    "POD_NAMESPACE": "The namespace in which a pod of ours runs; manifests fill it in.",
    "PROGRAM": "Between the demo and the program that it starts in a pod.",
    "PYTEST_XDIST_WORKER": "Set by pytest-xdist: which worker's lab the plugin of pytest starts.",
    "PYTHONPATH": "Passed on to what the lab starts.",
    "SHELL": "The shell that `podidentity lab shell` opens.",
    "SSL_CERT_FILE": "Certificates that are trusted; `podidentity lab env` adds the lab's.",
    "SUDO_UID": "Set by sudo: whose browser may have the page of `podidentity lab open`.",
    "XDG_CACHE_HOME": "Where the programs of the lab's real Kubernetes are kept, instead of `~/.cache`.",
    "XDG_RUNTIME_DIR": "Where labs live.",
}
_NAME = re.compile(r"[A-Z][A-Z0-9_]+")


def page() -> str:
    """Return the whole page. Raise `SystemExit` for a variable without a meaning here."""
    rows = [(f"`{name}`", ", ".join(sorted(places)), MEANINGS[name]) for name, places in sorted(variables().items())]
    return INTRODUCTION + "\n" + table(("variable", "read by", "meaning"), rows)


def variables() -> dict[str, set[str]]:
    """Return each variable with the parts that read it. Raise `SystemExit` for one that `MEANINGS` does not know."""
    places: defaultdict[str, set[str]] = defaultdict(set)
    for package in (PRODUCT, LAB):
        for path in package.rglob("*.py"):
            part = path.relative_to(package).parts[0].removesuffix(".py")
            for name in _read_in(path):
                places[name].add(f"`{part}`" if package == PRODUCT else "the lab")
        for call in calls(package):
            for keyword in call.node.keywords:
                if keyword.arg == "envvar" and isinstance(keyword.value, ast.Constant):
                    places[str(keyword.value.value)].add("`cli`" if package == PRODUCT else "the lab")
    file_variables = {name for name in cloud_config._VARIABLES.values() if name}  # noqa: SLF001  # they have a page of their own
    for name in file_variables & places.keys():
        del places[name]
    unknown = sorted(places.keys() - MEANINGS.keys())
    if unknown:
        raise SystemExit(f"tools/references/environment.py: {', '.join(unknown)} has no meaning there; write one")
    return places


def _read_in(path: Path) -> set[str]:
    """Return the names that a file reads: `environ.get("X")`, `environ["X"]`, of the process or of a parameter."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Call(func=ast.Attribute(value=source, attr="get"), args=[ast.Constant(str() as name), *_]):
                names |= {name} if _is_environment(source) else set()
            case ast.Subscript(value=source, slice=ast.Constant(str() as name), ctx=ast.Load()):
                names |= {name} if _is_environment(source) else set()
    return {name for name in names if _NAME.fullmatch(name)}


def _is_environment(node: ast.expr) -> bool:
    name = node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")
    return name in {"environ", "environment", "variables"}
