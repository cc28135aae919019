"""The node managed identity daemon: answers pods' token requests. Pieces meet in `daemon` only."""
