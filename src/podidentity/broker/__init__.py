"""The broker: exchanges pods' service account tokens for tokens of Azure identities, on any Kubernetes.

It holds one subject, its own projected token, which the identities trust by one federated credential each. `wiring`
builds the parts, `lifecycle` runs them.
"""
