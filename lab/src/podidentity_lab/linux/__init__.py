"""Network namespaces and mounts of this host."""
