"""IP addresses in one spelling each, so that texts can be compared: Kubernetes' against a connection's."""

import ipaddress


def canonical(text: str) -> str:
    """Return an address as RFC 5952 spells it, an IPv4 address inside IPv6 (`::ffff:10.0.0.1`) as IPv4, without a zone.

    A text that is no address stays as it is: it equals nothing that a connection can come from.
    """
    if ":" not in text:  # IPv4 has one spelling, and there may be ten thousand of them
        return text
    try:
        address = ipaddress.IPv6Address(text.partition("%")[0])
    except ValueError:
        return text
    return str(address.ipv4_mapped or address)
