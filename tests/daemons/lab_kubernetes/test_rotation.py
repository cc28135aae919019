"""The key that signs the cluster's tokens is replaced in three steps, and no token fails meanwhile."""

import pytest

from contract.servers import TwoLines
from daemons.lab_azure.federation import AUDIENCE, Tenant
from podidentity.errors import LabError
from podidentity_lab.kubernetes import ISSUER, Kubernetes


def test_no_exchange_fails_while_the_key_is_rotated() -> None:
    """The new key is published, after a wait used, and the old one withdrawn; Entra ID accepts tokens of both."""
    tenant = Tenant()
    cluster = Kubernetes(TwoLines(), clock=tenant.clock.wall)
    tenant.azure.publish_issuer(ISSUER, cluster.token_keys)
    tenant.trust(issuer=ISSUER)

    def token() -> str:
        return cluster.service_account_token("default", "reader", {"name": "p", "uid": "u"}, AUDIENCE)

    old = token()
    assert tenant.exchange(old)[0] == 200
    assert len(cluster.rotate_token_key("publish")) == 2
    assert tenant.exchange(token())[0] == 200
    tenant.clock.jump(1500)
    assert tenant.exchange(token())[0] == 200
    cluster.rotate_token_key("sign")
    assert token().split(".")[0] != old.split(".")[0]
    assert [tenant.exchange(one)[0] for one in (old, token())] == [200, 200]
    assert len(cluster.rotate_token_key("withdraw")) == 1
    tenant.clock.jump(1500)
    assert tenant.exchange(token())[0] == 200
    assert cluster.token_keys()["keys"][0]["kid"]


def test_a_key_that_signs_before_it_was_seen_fails() -> None:
    """Without the wait between publishing and signing Entra ID answers 7000272."""
    tenant = Tenant()
    cluster = Kubernetes(TwoLines(), clock=tenant.clock.wall)
    tenant.azure.publish_issuer(ISSUER, cluster.token_keys)
    tenant.trust(issuer=ISSUER)
    pod = {"name": "p", "uid": "u"}
    assert tenant.exchange(cluster.service_account_token("default", "reader", pod, AUDIENCE))[0] == 200
    cluster.rotate_token_key("publish")
    cluster.rotate_token_key("sign")
    early = tenant.exchange(cluster.service_account_token("default", "reader", pod, AUDIENCE))
    assert early == (401, "invalid_client", 7000272)


@pytest.mark.parametrize("phases", [["sign"], ["withdraw"], ["publish", "publish"], ["publish", "withdraw"]])
def test_steps_out_of_order_are_refused(phases: list[str]) -> None:
    """A step out of order, after which tokens could fail, is refused with the right order."""
    cluster = Kubernetes(TwoLines())
    for phase in phases[:-1]:
        cluster.rotate_token_key(phase)
    with pytest.raises(LabError, match="publish, sign, withdraw"):
        cluster.rotate_token_key(phases[-1])
