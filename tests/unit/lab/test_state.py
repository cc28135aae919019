"""Secrets that the lab's Azure generates."""

import re

from podidentity_lab.azure.state import new_secret


def test_a_secret_can_be_typed_after_an_option() -> None:
    """A secret can be an option's value in a shell.

    In `az login -p $LAB_OWNER_CLIENT_SECRET` it must not begin with `-` or have characters that a shell interprets.
    """
    made = {new_secret() for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(r"[A-Za-z0-9]{3}8Q~[A-Za-z0-9]{34}", one) for one in made)
