"""Tells the ranks of a group at once when one of them has died, under every MPI.

Most MPIs report no death, and a rank that computes gives no sign of life. So the leader of a group holds a TCP connection to
each of the others, over which nothing is ever sent: the system closes it when a process ends, however it ends, and gives
it up when the other host does not answer. A leader that loses one leaves, and the others lose it.
"""

import fcntl
import secrets
import select
import socket
import struct
import time
from contextlib import suppress

import numpy as np

from asyncfeded.mpi.launcher import MPI

CONNECT_S = 20.0
"""Within so many seconds the ranks of a group must have found each other."""
REMEDY = "let the hosts of a client, or of the server, reach each other, or put all its ranks on one host"
ADDRESSES = 16
"""At most so many addresses of a host are tried."""
MEETING = np.dtype([("port", np.int64), ("secret", np.uint8, 16), ("addresses", "S46", ADDRESSES)])
"""What the leader tells the others: where to connect, and what to say first."""
SIOCGIFADDR = 0x8915


class Lifeline:
    """The connections of a rank to others of its group: of the leader to all, and of the others to the leader.

    Collective in the group; then `connect`, which sends nothing by MPI.

    Args:
        comm: of the group; rank 0 is its leader.

    Attributes:
        leader: address of the leader's host, as this rank reaches it; empty on the leader.
    """

    def __init__(self, comm: MPI.Intracomm) -> None:
        self._rank, self._size, self.leader = comm.rank, comm.size, ""
        self._meeting, self._door = np.zeros(1, MEETING), None if comm.rank else _open_door(comm.size)
        self._connections: list[socket.socket] = []
        self._ranks: dict[int, int] = {}  # by file descriptor
        self._poll = select.poll()
        if self._door:
            self._meeting["port"] = self._door.getsockname()[1]
            self._meeting["secret"] = np.frombuffer(secrets.token_bytes(16), np.uint8)
            addresses = [address.encode() for address in own_addresses()[:ADDRESSES]]
            self._meeting["addresses"][0, : len(addresses)] = addresses
        comm.Bcast(self._meeting.view(np.uint8), 0)

    def connect(self, silence_s: float) -> None:
        """Connect the ranks of the group.

        Args:
            silence_s: a host that does not answer for so long is given up.

        Raises:
            ValueError: they cannot reach each other. The leader may raise it alone, or some of the others.
        """
        if self._door:
            with self._door as door:
                found = _accept(door, self._meeting["secret"].tobytes(), self._size - 1)
        else:
            connection, self.leader = _connect(self._meeting, self._rank)
            found = {0: connection}
        for rank, connection in found.items():
            _keep(connection, silence_s)
            self._connections.append(connection)
            self._ranks[connection.fileno()] = rank
            self._poll.register(connection, select.POLLIN)

    def lost(self) -> int | None:
        """The rank of the group to which the connection has ended; None if all stand. Never waits."""
        ended = self._poll.poll(0)
        return self._ranks[ended[0][0]] if ended else None

    def close(self) -> None:
        """End the connections."""
        for connection in self._connections:
            connection.close()


def _open_door(others: int) -> socket.socket:
    six = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if six else socket.AF_INET
    return socket.create_server(("", 0), family=family, dualstack_ipv6=six, backlog=others)


def own_addresses() -> list[str]:
    """The addresses of this host: those of its interfaces, then those that its name stands for. The loopback is the last."""
    found = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                raw = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found.append(socket.inet_ntoa(raw[20:24]))
    with suppress(OSError):  # a host that does not know its own name
        found += [str(where[0]) for *_, where in socket.getaddrinfo(socket.gethostname(), None, type=socket.SOCK_STREAM)]
    return sorted(dict.fromkeys(found), key=lambda address: address.startswith("127."))


def _accept(door: socket.socket, secret: bytes, others: int) -> dict[int, socket.socket]:
    """Wait for the others, who say the secret and their rank."""
    connections: dict[int, socket.socket] = {}
    until = time.monotonic() + CONNECT_S
    while len(connections) < others:
        door.settimeout(max(until - time.monotonic(), 0.01))
        try:
            connection, _ = door.accept()
            connection.settimeout(max(until - time.monotonic(), 0.01))
            said = connection.recv(len(secret) + 4, socket.MSG_WAITALL)
        except TimeoutError:
            raise ValueError(
                f"{others - len(connections)} of the {others} ranks that it works with did not connect to it by TCP within "
                f"{CONNECT_S:g} s; {REMEDY}"
            ) from None
        except OSError:
            continue
        if secrets.compare_digest(said[:-4], secret):
            connection.sendall(b"!")
            connections[int.from_bytes(said[-4:], "big")] = connection
        else:
            connection.close()
    return connections


def _connect(meeting: np.ndarray, rank: int) -> tuple[socket.socket, str]:
    """Connect to the leader. Returns the connection, and the address that it was reached at."""
    port, secret = int(meeting["port"][0]), meeting["secret"].tobytes()
    addresses = [address.decode() for address in meeting["addresses"][0].tolist() if address]
    for address in addresses:
        with suppress(OSError):
            connection = socket.create_connection((address, port), timeout=CONNECT_S / 4)
            try:
                connection.sendall(secret + rank.to_bytes(4, "big"))
                if connection.recv(1) == b"!":  # it is the leader, and no stranger at the same address
                    return connection, address
            except OSError:
                pass
            connection.close()
    raise ValueError(
        f"it cannot connect by TCP to the first of the ranks that it works with, at {', '.join(addresses)}; {REMEDY}"
    )


def _keep(connection: socket.socket, silence_s: float) -> None:
    """Let the system ask a silent host whether it is there, six times within `silence_s`."""
    connection.settimeout(None)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    every_s = max(1, round(silence_s / 6))
    for option, value in ((socket.TCP_KEEPIDLE, every_s), (socket.TCP_KEEPINTVL, every_s), (socket.TCP_KEEPCNT, 5)):
        connection.setsockopt(socket.IPPROTO_TCP, option, value)
