"""Ends connections to IMDS that began before the redirect stood.

A connection keeps the way it had when it began: without this, a pod's kept-alive connection goes on reaching the real
IMDS after the redirect is up, and new ones can run into stale entries.
"""

from podidentity.linux.commands import CommandError, run


async def delete_connections(address: str, port: int, *, only_unredirected: bool) -> None:
    """Forget the TCP connections that were opened to `address`:`port`.

    With `only_unredirected`, those that IMDS itself answers: a repair must not reset clients that NMI is serving.
    Raises `HostError`.
    """
    arguments = ["-D", "-p", "tcp", "--orig-dst", address, "--orig-port-dst", str(port)]
    if only_unredirected:
        arguments += ["--reply-src", address]
    try:
        await run("conntrack", *arguments)
    except CommandError as error:
        if "0 flow entries" not in error.output:  # nothing to delete is status 1
            raise
