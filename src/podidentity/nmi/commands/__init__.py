"""One-off work of NMI: uninstalling the interception."""
