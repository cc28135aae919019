"""The node managed identity daemon: answers pods' token requests. `wiring` builds its parts, `lifecycle` runs them."""
