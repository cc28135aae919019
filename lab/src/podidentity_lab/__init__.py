"""The lab: nodes, pods, a small Azure and a small Kubernetes on one machine, in which real clients work."""
