"""From the programs in bench/ to docs/performance.md."""
