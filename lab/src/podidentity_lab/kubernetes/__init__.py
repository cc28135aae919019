"""The lab's embedded Kubernetes: an API that real kubectl works with, and just enough controllers.

It does what the walk-through, the docs' examples and the tests need; a real cluster judges the rest.
"""

from podidentity_lab.kubernetes.auth import ISSUER
from podidentity_lab.kubernetes.kubernetes import Kubernetes, PodLogs
from podidentity_lab.kubernetes.statuses import ApiError
from podidentity_lab.kubernetes.storage import Storage, WatchEvent

__all__ = ["ISSUER", "ApiError", "Kubernetes", "PodLogs", "Storage", "WatchEvent"]
