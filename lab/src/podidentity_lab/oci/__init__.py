"""Images of the user's own: read from archives, kept as blobs and names, unpacked into roots.

Formats: the OCI image specification (image-spec v1.1: manifest, config, layer, image-layout) and the archive of
`docker save` (moby/docker-image-spec v1.2).
"""
