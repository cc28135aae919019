"""The webhook's decisions: what a pod with the label `azure.workload.identity/use` gets, or why it is refused.

Labels, annotations, variables and paths are those of azure-workload-identity v1.6, so that its users change nothing.
"""
