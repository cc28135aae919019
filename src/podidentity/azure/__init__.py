"""Azure as MIC sees it: its configuration, its clouds, tokens for ARM, and the identities of VMs and scale sets."""
