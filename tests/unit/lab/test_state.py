"""What the lab's Azure makes up."""

import re

from podidentity_lab.azure.state import new_secret


def test_a_secret_can_be_typed_after_an_option() -> None:
    """In `az login -p $LAB_OWNER_CLIENT_SECRET` it must be a value: never `-...`, and nothing that a shell reads."""
    made = {new_secret() for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(r"[A-Za-z0-9]{3}8Q~[A-Za-z0-9]{34}", one) for one in made)
