"""One spelling for each address."""

import pytest

from podidentity.core.model.addresses import canonical


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10.244.1.2", "10.244.1.2"),
        ("::ffff:10.244.1.2", "10.244.1.2"),
        ("::FFFF:0AF4:0102", "10.244.1.2"),
        ("FD00:0:0::1", "fd00::1"),
        ("fe80::1%eth0", "fe80::1"),
        ("", ""),
        ("010.0.0.1", "010.0.0.1"),
        ("pod", "pod"),
        ("fd00::g", "fd00::g"),
    ],
)
def test_an_address_has_one_spelling(text: str, expected: str) -> None:
    """Each address has one canonical spelling; a text that is no address stays as it is."""
    assert canonical(text) == expected
