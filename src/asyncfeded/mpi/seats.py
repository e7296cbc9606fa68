"""Who does what: which ranks are the server, which one only tests, and which ranks train a client together.

The ranks of a job are seated in this order: the server ranks, of which the first decides; the rank that tests, if there is
one; and the workers, each a group of adjacent seats whose first is its leader, who speaks with the server. This file does
not use MPI: world.py seats the ranks.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple


class Seats(NamedTuple):
    """The seats of a job."""

    order: tuple[int, ...]
    """The rank of MPI_COMM_WORLD that has each seat."""
    groups: tuple[tuple[int, ...], ...]
    """The seats of each worker, its leader first."""
    servers: int = 1
    """The first so many seats are the server."""
    evaluator: int = -1
    """The seat that only tests; -1: the server does."""

    @property
    def leaders(self) -> tuple[int, ...]:
        """The seats that speak with the server, one of each worker."""
        return tuple(group[0] for group in self.groups)

    @property
    def grouped(self) -> bool:
        """Whether a worker has several ranks."""
        return any(len(group) > 1 for group in self.groups)

    @property
    def workers(self) -> int:
        """Number of workers."""
        return len(self.groups)

    def worker(self, seat: int) -> int:
        """The worker that a seat belongs to; -1: it belongs to none."""
        return next((worker for worker, group in enumerate(self.groups) if seat in group), -1)

    def serves(self, rank: int) -> bool:
        """Whether a rank of MPI_COMM_WORLD is of the server."""
        return rank in self.order[: self.servers]

    def homes(self, seat: int, num_clients: int) -> range:
        """The clients that live on a seat at the start, none on the server's; client 0 lives on the first worker."""
        worker = self.worker(seat)
        return range(worker, num_clients, self.workers) if worker >= 0 else range(0)


class Part(NamedTuple):
    """Which part of every batch a rank takes."""

    rank: int = 0
    size: int = 1

    def of(self, samples: int) -> range:
        """Its samples among so many; the first ranks have one more where they do not divide."""
        each, more = divmod(samples, self.size)
        start = self.rank * each + min(self.rank, more)
        return range(start, start + each + (self.rank < more))


def deal(
    hosts: Sequence[str], server: int = 0, servers: int = 1, evaluator: int = -1, ranks_per_client: int | Literal["node"] = 1
) -> Seats:
    """Deal the seats.

    Args:
        hosts: the host of each rank.
        server: the rank that decides; the ranks that follow it are the other server ranks.
        servers: number of server ranks.
        evaluator: the rank that only tests; -1: none.
        ranks_per_client: ranks of a worker, of one host as far as possible; node: those that share a host.

    Raises:
        ValueError: the ranks do not suffice, or some are left over.
    """
    size = len(hosts)
    if server >= size:
        raise ValueError(f"server = {server}, but the ranks are 0 to {size - 1}; set server to one of them")
    first = [(server + number) % size for number in range(min(servers, size))]
    if evaluator >= size or evaluator in first:
        raise ValueError(
            f"evaluator = {evaluator}, but the ranks are 0 to {size - 1}, and {first} are the server; set it to another one"
        )
    first += [evaluator] * (evaluator >= 0)
    rest = [rank for rank in range(size) if rank not in first]
    if ranks_per_client != 1:
        rest.sort(key=lambda rank: (hosts.index(hosts[rank]), rank))
    if ranks_per_client == "node":
        sizes = [sum(hosts[rank] == host for rank in rest) for host in dict.fromkeys(hosts[rank] for rank in rest)]
    else:
        sizes = [ranks_per_client] * (len(rest) // ranks_per_client)
    if not sizes or sum(sizes) < len(rest) or len(first) < servers + (evaluator >= 0):
        needed = len(first) + (1 if ranks_per_client == "node" else ranks_per_client)
        raise ValueError(
            f"{size} ranks do not make {servers} of the server and clients of {ranks_per_client} ranks each; start "
            f"{needed}, or so many more that every client has its ranks"
        )
    seats = iter(range(len(first), size))
    groups = tuple(tuple(next(seats) for _ in range(count)) for count in sizes)
    return Seats((*first, *rest), groups, servers, servers if evaluator >= 0 else -1)
