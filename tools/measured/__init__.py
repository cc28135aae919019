"""From the programs in bench/ to docs/performance.md. Called by tools/performance.py."""
