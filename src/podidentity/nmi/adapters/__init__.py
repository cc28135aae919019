"""What NMI's parts need of Kubernetes, Azure and the kernel."""
