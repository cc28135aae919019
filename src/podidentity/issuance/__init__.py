"""What NMI and the broker share on the way to a token: a cache, limits, retries, and fairness among those who ask."""
