"""The webhook: gives pods with the label `azure.workload.identity/use` what Azure's SDKs look for.

It takes the place of azure-workload-identity's. `wiring` builds the parts, `lifecycle` runs them.
"""
