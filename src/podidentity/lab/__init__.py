"""The lab: nodes, pods, an Azure and a Kubernetes on one machine, close enough that real clients cannot tell."""
