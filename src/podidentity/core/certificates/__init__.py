"""When a daemon's own certificate authority (CA) is replaced, and how long what it signs lasts."""
