"""The files that the lab brings along: manifests and the sample application. In a checkout they are links.

They lie as they do in the repository, so that a command that names one reads the same in both.
"""

from pathlib import Path

FILES = Path(__file__).resolve().parent
MANIFEST = FILES / "deploy" / "infra" / "deployment-rbac.yaml"
KEYVAULT_APP = (FILES / "examples" / "keyvault-app").resolve()
