"""For all tests: a property is about truth, never about speed, so hypothesis has no deadline."""

from hypothesis import settings

pytest_plugins = ["cluster.shared"]

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
