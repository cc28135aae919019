"""One-off work of MIC: uninstalling, and rewriting stored objects."""
