"""The lines of `podidentity lab log`."""

import json
from typing import Any

import pytest
from click.testing import CliRunner

from podidentity_lab.cli import commands, log, options
from podidentity_lab.cli.log import render_json, render_text

ENTRY: dict[str, Any] = {
    "number": 1,
    "time": 0.5,
    "service": "imds",
    "asker": "node-0",
    "host": "169.254.169.254",
    "method": "GET",
    "what": "/metadata/identity/oauth2/token",
    "resource": "https://vault.azure.net",
    "who": "1b2c",
    "identity": "reader",
    "status": 200,
    "why": "",
}
IDENTITY = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/reader"


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({}, "00:00:00.500  node-0 → IMDS: token for https://vault.azure.net, as reader: 200"),
        ({"identity": ""}, "00:00:00.500  node-0 → IMDS: token for https://vault.azure.net, as 1b2c: 200"),
        (
            {"what": f"/token?msi_res_id={IDENTITY}", "who": "", "status": 400, "why": "Identity not found"},
            (
                "00:00:00.500  node-0 → IMDS: token for https://vault.azure.net naming "
                "msi_res_id=.../userAssignedIdentities/reader: 400 Identity not found"
            ),
        ),
        (
            {"what": "/token?client_id=1b2c"},
            "00:00:00.500  node-0 → IMDS: token for https://vault.azure.net naming client_id=1b2c, as reader: 200",
        ),
        (
            {"service": "arm", "method": "PUT", "what": IDENTITY, "resource": "", "asker": "host", "status": 201},
            "00:00:00.500  host → ARM: PUT .../userAssignedIdentities/reader, as reader: 201",
        ),
        (
            {"service": "keyvault", "host": "kv.vault.azure.net", "what": "/secrets/x", "resource": ""},
            "00:00:00.500  node-0 → Key Vault kv: GET /secrets/x, as reader: 200",
        ),
        (
            {"service": "blob", "host": "store.blob.core.windows.net", "what": "/box/a", "resource": ""},
            "00:00:00.500  node-0 → Blob storage store: GET /box/a, as reader: 200",
        ),
        (
            {"service": "", "host": "x.azure.com", "what": "/", "resource": "", "who": "", "status": 404},
            "00:00:00.500  node-0 → an unknown host x.azure.com: GET /: 404",
        ),
    ],
)
def test_a_line_says_who_asked_whom_for_what_as_whom_and_the_answer(changed: dict[str, Any], line: str) -> None:
    """A line has these parts in this order, with ARM's long paths shortened; a refusal is red."""
    shown = render_text({**ENTRY, **changed})
    assert shown.removeprefix("\x1b[31m").removesuffix("\x1b[0m") == line
    assert shown.startswith("\x1b[31m") is (changed.get("status", 200) >= 400)


def test_as_json_a_line_is_the_entry() -> None:
    """Each entry is one JSON object on one line, with nothing left out."""
    shown = render_json(ENTRY)
    assert "\n" not in shown
    assert json.loads(shown) == ENTRY


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_no_color_is_obeyed(monkeypatch: pytest.MonkeyPatch, no_color: str, *, coloured: bool) -> None:
    """On a terminal a refusal is red, unless NO_COLOR has a value."""
    monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(options, "ready", lambda _: None)
    monkeypatch.setattr(log, "entries", lambda _, follow: [{**ENTRY, "status": 403}])  # noqa: ARG005  # by name
    result = CliRunner().invoke(commands.lab, ["log"], color=True)
    assert result.exit_code == 0
    assert ("\x1b[31m" in result.output) is coloured
