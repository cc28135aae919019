"""The webhook's way to Kubernetes."""
