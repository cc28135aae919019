"""Which users of the host may use the lab's gateway, its registry and its page: the lab's own and root.

A port on loopback is open to every user of the machine, and a lab's pods believe whoever comes through its gateway. The
kernel is asked whose the client's end of a connection is. It is asked through descriptors from outside the lab: the
lab's own would tell of the lab's network and, without root, of the lab's user IDs.
"""

import ipaddress
import os
import socket
from dataclasses import dataclass

from podidentity.linux import peer_owner

_ROOT = 0
_TABLE = "/proc/self/net/tcp"
_READ_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Callers:
    """`diagnosis` asks the kernel for one socket; `table` has all of them, for a kernel that is not asked like that."""

    owner: int
    diagnosis: socket.socket
    table: int

    @classmethod
    def of_this_host(cls, owner: int | None = None) -> "Callers":
        """Return what is to be handed to the lab, for a user or else that of this process. Raises `OSError`."""
        return cls(
            os.geteuid() if owner is None else owner,
            peer_owner.open_diagnosis(),
            os.open(_TABLE, os.O_RDONLY | os.O_CLOEXEC),
        )

    def descriptors(self) -> tuple[int, int]:
        """Return the descriptors that the lab needs."""
        return self.diagnosis.fileno(), self.table

    def close(self) -> None:
        """Close both descriptors."""
        self.diagnosis.close()
        os.close(self.table)

    def is_welcome(self, client: peer_owner.End, server: peer_owner.End) -> bool:
        """Whether the program at the client's end of a loopback connection runs as the lab's user or as root.

        Another connection comes only where `lab up --listen 0.0.0.0` has let it in, and from where there are no users.
        """
        if not ipaddress.ip_address(server[0]).is_loopback:
            return True
        return self._uid(client, server) in (_ROOT, self.owner)

    def _uid(self, client: peer_owner.End, server: peer_owner.End) -> int | None:
        try:
            return peer_owner.ask(client, server, self.diagnosis)
        except OSError:  # no inet_diag in this kernel
            return peer_owner.find(self._read_table(), client, server)

    def _read_table(self) -> str:
        os.lseek(self.table, 0, os.SEEK_SET)
        return b"".join(iter(lambda: os.read(self.table, _READ_BYTES), b"")).decode()
