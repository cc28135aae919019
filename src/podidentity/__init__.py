"""Azure managed identities for Kubernetes pods, without a secret in sight."""

__version__ = "2.0.0rc1"
