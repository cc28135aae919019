"""What `deploy/` and the chart's `crds/` are generated from; `tools/manifests.py` writes the files.

`settings` holds what an installation may choose; `crds`, `rights`, `workloads`, `mic`, `broker` and `demo` build
objects as plain JSON values; `files` decides which objects stand in which file; `text` turns them into readable YAML.
Object names, labels, selectors and file names are those of aad-pod-identity v1.8.17, which can be replaced in place.
"""
