"""What MIC's ports are on a real cluster: Kubernetes and Azure."""
