"""Tests of which pods a change concerns."""

import make
from podidentity.nmi.revisions import NAMES_LIMIT, Revisions

POD = make.pod()


def test_a_change_concerns_the_pods_of_its_selector_or_namespace_or_all() -> None:
    """A number grows with what concerns the pod: its selector in any namespace, its namespace, or everything."""
    revisions = Revisions()
    numbers = [revisions.revision_of(POD)]
    revisions.count_selectors(["other", POD.selector])
    numbers.append(revisions.revision_of(POD))
    revisions.count_namespace(POD.key.namespace)
    numbers.append(revisions.revision_of(POD))
    revisions.count()
    numbers.append(revisions.revision_of(POD))
    assert numbers == sorted(set(numbers))
    revisions.count_selectors(["other"])
    revisions.count_namespace("other")
    revisions.count_selectors([])
    assert revisions.revision_of(POD) == numbers[-1]
    assert revisions.latest == numbers[-1] + 3


def test_what_is_forgotten_counts_as_changed() -> None:
    """When too many selectors are told apart, all pods are concerned: nothing that changed may look unchanged."""
    revisions = Revisions()
    before = revisions.revision_of(POD)
    revisions.count_selectors([POD.selector])
    concerned = revisions.revision_of(POD)
    revisions.count_selectors(f"selector-{number}" for number in range(NAMES_LIMIT))
    after = revisions.revision_of(POD)
    assert before < concerned < after
    revisions.count_selectors(["another"])
    assert revisions.revision_of(POD) == after
