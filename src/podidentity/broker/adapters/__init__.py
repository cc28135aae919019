"""The broker's ways to Kubernetes and to Entra ID."""
