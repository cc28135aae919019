"""The notes of a release: its section of CHANGELOG.md."""

import re

from artifacts.checkout import Checkout


def section_of(checkout: Checkout) -> str:
    """Return the section of the version; of a development version, what is unreleased. Raise `SystemExit` without."""
    title = "Unreleased" if ".dev" in checkout.version else checkout.version
    text = (checkout.root / "CHANGELOG.md").read_text()
    section = re.search(rf"^## \[{re.escape(title)}\][^\n]*\n(.*?)(?=^## \[|\Z)", text, re.MULTILINE | re.DOTALL)
    if section is None or not section[1].strip():
        raise SystemExit(f"CHANGELOG.md: it has no section [{title}]; write what users must know of this version")
    return f"# podidentity {checkout.version}\n\n{section[1].strip()}\n"
