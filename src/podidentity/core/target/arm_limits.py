"""ARM's token buckets for one VM or scale set, so that MIC stays below them instead of running into 429.

Figures: learn.microsoft.com/azure/virtual-machines/compute-throttling-limits, for each resource.
"""

from podidentity.core.model.token_bucket import full_bucket

UPDATES = full_bucket(capacity=12, refill_seconds=15.0)
"""PATCHes: 12 at once, 4 a minute."""
READS = full_bucket(capacity=36, refill_seconds=5.0)
"""GETs: 36 at once, 12 a minute."""
TOUCHES = full_bucket(capacity=1, refill_seconds=60.0)
"""Changes of one AzureIdentity that are acted on at once: a tenant's loop must not spend a scale set's PATCHes."""
