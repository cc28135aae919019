"""The commands of the page about templates, vaults, blobs and users, as a reader types them into a shell of a lab."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from interop.stage import ROOT, Stage

PAGE = ROOT / "docs/lab/templates.md"
pytestmark = pytest.mark.timeout(900)


def test_the_commands_of_the_page_work_as_printed(stage: Stage, client: Callable[[str], Path], tmp_path: Path) -> None:
    """All of them, in order, in one shell. Their last user reads the subscription, and no blob: no role says so."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    script = "\n".join(blocks).replace('eval "$(podidentity lab env)"', "").replace("ada@lab.test", "ada@page.test")
    settings = f"export PATH={client('az')}/bin:$PATH HOME={tmp_path} AZURE_CONFIG_DIR={tmp_path}/az"
    settings += f" AZURE_CORE_COLLECT_TELEMETRY=0; cd {tmp_path}; set -eu"
    done = stage.on_host(f"{settings}\n{script}")
    assert done.status == 0, done.out + done.err
    assert (tmp_path / "copy.txt").read_text() == "to pay: 10 EUR\n"
    assert '"userPrincipalName": "ada@page.test"' in done.out
    assert "clientId" in done.out
    blob = "--account-name shopstore -c invoices -n first.txt -f other.txt --auth-mode login"
    refused = stage.on_host(f"{settings}\naz storage blob download {blob}")
    assert refused.status != 0
    assert "You do not have the required permissions" in refused.err
