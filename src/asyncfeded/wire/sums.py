"""Sums of equal vectors over the ranks of a group: the same bits on every rank, under every MPI and on any hosts.

Rank r adds up the r-th part of all vectors, in the order of ranks, and sends it to the others. A part travels in chunks, few
of them under way at a time, so that adding one overlaps with the transfer of the next. MPI's own Allreduce adds in an order
that depends on the library, on the length and on where the ranks run; it is not faster (asyncfeded bench group).

A short vector goes to every rank whole, in one exchange where the parts need two, and each adds up all of them in the same
order: the same bits.

Vectors in the memory of GPUs are added by torch.distributed (NCCL), in the order that it chooses.
"""

from datetime import timedelta
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from asyncfeded.mpi.launcher import MPI
from asyncfeded.wire.group import Group
from asyncfeded.wire.transfer import CHUNK, UNDER_WAY

PART_TAG, SUM_TAG, WHOLE_TAG = 31_000, 31_001, 31_002  # behind the tags of transfer.py
SHORT = 2048
"""Elements up to which a vector goes to every rank whole: MPI sends so little at once, without asking (8 KiB)."""

FOR_EVER = timedelta(days=365)
"""The group finds out itself when a rank has died (group.py); torch would end the process in its own way."""


class Vector(Protocol):
    """A vector that the ranks of a group add up."""

    vector: Tensor

    def add(self) -> None:
        """See `Sum`."""


class Sum:
    """A vector that the ranks of a group add up, again and again. All make their sums, and add, in the same order.

    Args:
        group: the ranks.
        size: elements of the vector, equal on all ranks.

    Attributes:
        vector: float32 (size,), to be written before `add`, and the sum after it.
    """

    def __init__(self, group: Group, size: int) -> None:
        self.vector, self._group, self._terms = torch.zeros(size), group, list[list[np.ndarray]]()

    def _open(self) -> None:
        """Make the requests, once."""
        group, size = self._group, len(self.vector)
        comm, here, ranks = group.comm, group.rank, range(group.size)
        others = [(here + step) % group.size for step in ranks[1:]]  # not all to the same rank first
        ends = [size * rank // group.size for rank in range(group.size + 1)]
        longest, vector = max(ends[rank + 1] - ends[rank] for rank in ranks), self.vector.numpy()
        # float32 (UNDER_WAY, ranks, chunk): parts of others that have arrived, until they are added. They belong to MPI.
        self._arrived = np.empty((UNDER_WAY, group.size, min(CHUNK, longest)), np.float32)
        self._parts: list[list[MPI.Prequest]] = []  # by chunk: their parts of mine arrive, my parts of theirs leave
        self._sums: list[list[MPI.Prequest]] = []  # by chunk: their sums arrive, mine leaves
        for place, start in enumerate(range(0, longest, CHUNK)):
            chunks = [vector[min(ends[r] + start, ends[r + 1]) : min(ends[r] + start + CHUNK, ends[r + 1])] for r in ranks]
            mine, arrived = chunks[here], self._arrived[place % UNDER_WAY]
            terms = [mine if rank == here else arrived[rank, : len(mine)] for rank in ranks]
            self._terms.append(terms)  # the parts to add, by rank
            self._parts.append(
                [comm.Recv_init([terms[rank], MPI.FLOAT], rank, PART_TAG) for rank in others]
                + [comm.Send_init([chunks[rank], MPI.FLOAT], rank, PART_TAG) for rank in others]
            )
            self._sums.append(
                [comm.Recv_init([chunks[rank], MPI.FLOAT], rank, SUM_TAG) for rank in others]
                + [comm.Send_init([mine, MPI.FLOAT], rank, SUM_TAG) for rank in others]
            )
        self._mine = [terms[here] for terms in self._terms]
        for request in (request for requests in (*self._parts, *self._sums) for request in requests):
            group.undo.callback(request.Free)

    def add(self) -> None:
        """Replace the vector by the sum of those of all ranks; until the group has begun, there is only this one.

        Collective in the group.

        Raises:
            GroupLostError: a rank of the group has died.
        """
        if self._group.begun:
            if not self._terms:
                self._open()
            self._begun = self._added = self._done = 0
            self._group.wait(self._go_on)

    def _go_on(self) -> bool:
        """Do what can be done now. Returns whether the sum is complete. Never waits."""
        chunks = len(self._terms)
        while True:
            moved = False
            if self._begun < chunks and self._begun - self._done < UNDER_WAY:
                MPI.Prequest.Startall(self._parts[self._begun])
                self._begun, moved = self._begun + 1, True
            if self._added < self._begun and MPI.Request.Testall(self._parts[self._added]):
                total, *between, last = self._terms[self._added]
                for term in between:  # the sum so far moves into a buffer that is free now
                    total = np.add(total, term, out=term)
                np.add(total, last, out=self._mine[self._added])
                MPI.Prequest.Startall(self._sums[self._added])
                self._added, moved = self._added + 1, True
            if self._done < self._added and MPI.Request.Testall(self._sums[self._done]):
                self._done, moved = self._done + 1, True
            if self._done == chunks:
                return True
            if not moved:
                return False
            self._group.moved()


class ShortSum:
    """Like `Sum`, and to the same bits: each rank gets the vectors of all, and adds them up itself.

    Args:
        group: the ranks.
        size: elements of the vector, at most SHORT.
    """

    def __init__(self, group: Group, size: int) -> None:
        self.vector, self._group, self._terms = torch.zeros(size), group, list[np.ndarray]()

    def _open(self) -> None:
        """Make the requests, once."""
        group, mine = self._group, self.vector.numpy()
        others = [(group.rank + step) % group.size for step in range(1, group.size)]
        arrived = np.empty((group.size, len(mine)), np.float32)  # the vectors of the others; it belongs to MPI inside `add`
        self._terms = [mine if rank == group.rank else arrived[rank] for rank in range(group.size)]
        self._requests = [group.comm.Recv_init([arrived[rank], MPI.FLOAT], rank, WHOLE_TAG) for rank in others]
        self._requests += [group.comm.Send_init([mine, MPI.FLOAT], rank, WHOLE_TAG) for rank in others]
        for request in self._requests:
            group.undo.callback(request.Free)

    def add(self) -> None:
        """See `Sum`."""
        if self._group.begun:
            if not self._terms:
                self._open()
            self._started = False
            self._group.wait(self._go_on)
            total, *between, last = self._terms
            for term in between:
                total = np.add(total, term, out=term)
            np.add(total, last, out=self._terms[self._group.rank])

    def _go_on(self) -> bool:
        """See `Sum`. One request after the other: with few of them calls for all at once take longer."""
        if not self._started:
            for request in self._requests:
                request.Start()
            self._started = True
        for request in self._requests:  # noqa: SIM110  # all() takes 0.3 us more, a tenth of a sum
            if not request.Test():
                return False
        return True


class DeviceSum:
    """Like `Sum`, by torch.distributed: with a vector in the memory of a GPU.

    Args:
        group: the ranks.
        size: elements of the vector.
        device: where it lies.
    """

    def __init__(self, group: Group, size: int, device: torch.device) -> None:
        self.vector, self._group = torch.zeros(size, device=device), group

    def add(self) -> None:
        """See `Sum`."""
        if self._group.begun:
            from torch import distributed  # the ranks of most runs do not need it

            if not distributed.is_initialized():
                _join(self._group, distributed.Backend.default_device_backend_map[self.vector.device.type])
            work = distributed.all_reduce(self.vector, async_op=True)
            assert work is not None
            self._group.wait(work.is_completed)
            work.wait()  # lets what is computed next wait for it


def make_sum(group: Group, size: int, device: torch.device) -> Vector:
    """A vector of so many elements on a device, and what adds it up."""
    if device.type != "cpu":
        return DeviceSum(group, size, device)
    return (ShortSum if size <= SHORT else Sum)(group, size)


def _join(group: Group, backend: str) -> None:
    """Tell torch.distributed the ranks of a group, once; the port of the leader's store goes by MPI. Collective in it."""
    from torch import distributed
    from torch._C._distributed_c10d import TCPStore

    port, store = np.zeros(1, np.int64), None
    if group.rank == 0:
        store = TCPStore("localhost", 0, group.size, is_master=True, timeout=FOR_EVER, wait_for_workers=False)
        port[0] = store.port
    group.share(port)
    assert group.lifeline
    store = store or TCPStore(group.lifeline.leader, int(port[0]), group.size, timeout=FOR_EVER)
    distributed.init_process_group(backend, store=store, rank=group.rank, world_size=group.size, timeout=FOR_EVER)
    group.undo.callback(distributed.destroy_process_group)
