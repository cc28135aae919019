"""What `deploy/` and the chart's `crds/` are generated from; `tools/manifests.py` writes the files.

`settings` holds what an installation may choose, `crds`, `rights`, `nmi`, `mic` and `demo` build objects as plain
JSON values, `files` says which objects stand in which file, `text` turns them into readable YAML.
Object names, labels, selectors and file names are those of aad-pod-identity v1.8.17: who replaces it keeps every name.
"""
