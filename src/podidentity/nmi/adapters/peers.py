"""Who is at the other end of a connection, as the kernel tells it: a pod, or a program of this node."""

import socket
from collections.abc import Callable

from podidentity.core.model.addresses import canonical
from podidentity.linux.link import link_of
from podidentity.linux.local_socket import peer_uid
from podidentity.linux.original_destination import original_destination
from podidentity.linux.peer_owner import owner_uid
from podidentity.nmi.ports import LOCAL_PEER, LOOPBACK, ROOT_UID, Peer

ClientAddress = tuple[str, int]


def admit_pod(connection: socket.socket, client: ClientAddress) -> Peer:
    """Admit a client as the pod that its address and link belong to."""
    return Peer(canonical(client[0]), link_of(connection), port=client[1])


def admit_redirected_pod(
    metadata_service: tuple[str, int], on_direct: Callable[[], None], connection: socket.socket, client: ClientAddress
) -> Peer | None:
    """Admit a pod that wanted to reach `metadata_service` and was sent here; call `on_direct` for any other client."""
    if original_destination(connection) != metadata_service:
        on_direct()
        return None
    return admit_pod(connection, client)


def admit_node(_connection: socket.socket, client: ClientAddress) -> Peer:
    """Admit a program of this node, which asks on loopback."""
    return Peer(client[0], port=client[1])


def admit_root(connection: socket.socket, _client: ClientAddress) -> Peer | None:
    """Admit a program of root's that connected to the Unix socket."""
    return Peer(LOCAL_PEER) if peer_uid(connection) == ROOT_UID else None


async def owner_of(port: int, peer: Peer) -> int | None:
    """Return the UID of the program that holds `peer`'s end of a loopback connection to `port`; None when unknown."""
    return await owner_uid((peer.address, peer.port), (LOOPBACK, port))
