"""The HTTPS server of the broker and the webhook: aiohttp, with a bound for everything that a client can hold."""
