"""Lines and entries that one token's request leaves in the lab's logs."""

from typing import Any

from podidentity_lab.page.events import NMI, Event, of_audit_line, of_entry

CLIENT = "10a6e04b-98bf-4a06-acca-5c4376a7f8d1"
OTHER_CLIENT = "d8cf31ee-effa-4e13-b4b9-0ea89c297ccb"
START = 1795914586.0  # 2026-11-29T01:09:46Z


def nmi(moment: float, pod: str = "batch", node: str = "node-1", client: str = CLIENT, **fields: object) -> Event:
    """Return what NMI wrote `moment` seconds after the start."""
    values = {"status": 200, "cached": "false", "ms": 100.0, "why": "", **fields}
    line = (
        f"2026-11-29T01:09:{46 + moment:06.3f}Z INFO audit: msg=token status={values['status']} pod={pod} "
        f"namespace=default uid=1 address=10.244.1.3 resource=vault.azure.net cached={values['cached']} "
        f'identity=default/writer client_id="{client[:4]}##### REDACTED #####{client[-4:]}" source=adal_token_msi '
        f'why="{values["why"]}" ms={values["ms"]}'
    )
    event = of_audit_line(line, NMI, node)
    assert event is not None
    return event


def azure(moment: float, service: str, asker: str, client: str = CLIENT, **fields: Any) -> Event:
    """Return what the lab's Azure logged `moment` seconds after the start."""
    entry = {
        "number": 1,
        "time": START + moment,
        "service": service,
        "asker": asker,
        "host": "app-vault.vault.azure.net" if service == "keyvault" else "169.254.169.254",
        "method": "GET",
        "what": "/secrets/greeting" if service == "keyvault" else "/metadata/identity/oauth2/token",
        "resource": "" if service == "keyvault" else "https://vault.azure.net",
        "who": client,
        "identity": "writer",
        "status": 200,
        "why": "",
    }
    return of_entry({**entry, **fields})
