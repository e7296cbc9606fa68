"""Whom a message goes to: a rank of a communicator."""

from collections.abc import Iterable
from typing import NamedTuple

from asyncfeded.mpi.launcher import MPI


class Peer(NamedTuple):
    """One end of a wire: the rank that a worker, or the server, speaks through."""

    comm: MPI.Comm
    rank: int
    """In `comm`; of the other group, if that is an intercommunicator."""
    name: str
    """For the user, such as `rank 2`."""


def peers(comm: MPI.Intracomm, ranks: Iterable[int]) -> list[Peer]:
    """These ranks of a communicator."""
    return [Peer(comm, rank, f"rank {rank}") for rank in ranks]
