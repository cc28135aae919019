"""What a release consists of: packages, images, chart, manifests, bills of materials, notes, checksums."""
