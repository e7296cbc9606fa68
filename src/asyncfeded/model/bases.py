"""The buffers that replies are sent from: which client's base lies in which. It knows no versions, and decides nothing.

The base of a client lies in the buffer that its reply is sent from. Clients that were sent the same model hold one buffer,
unless there is something of their own behind the base.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from asyncfeded.model.disk import Disk
from asyncfeded.model.flat import Layout


@dataclass(eq=False)
class Buffer:
    """A reply, and how many hold it."""

    reply: Tensor
    """float32 (sent,). It may be written only while a client alone holds it, and after that client's update has arrived."""
    holders: int = 0
    """Clients, a checkpoint that is being written, and the wire, which may still send it to a client that was forgotten."""


def in_turn(replies: Iterable[Tensor], part: slice, disk: Disk | None) -> Iterator[np.ndarray]:
    """A part of each reply, in host memory, valid until the next one is asked for. Any thread may call it.

    Args:
        replies: held, so that nobody writes them (`Bases.keep`).
        part: elements of each.
        disk: where they lie: each is put away once it was used.
    """
    for reply in replies:
        yield reply[part].cpu().numpy()
        if disk:
            disk.put_away(reply)


class Bases:
    """Who holds which buffer.

    Args:
        new: makes a buffer in memory, float32 (layout.sent,) of zeros, whose memory is touched.
        layout: what lies where.
        num_clients: number of clients.
        held: how many buffers to make now; others are made when they are needed, and at most one for each client.
        disk: where the buffers lie; None: in memory.

    Attributes:
        reply: float32 (sent,) by client; what it is sent: its base, and what is its own.
        base: float32 (size,) by client; in `reply`. Empty if it was forgotten.
    """

    def __init__(
        self, new: Callable[[], Tensor], layout: Layout, num_clients: int, held: int, disk: Disk | None = None
    ) -> None:
        new, self._disk = disk.new if disk else new, disk
        self._new, self._size, self._num_own = new, layout.size, layout.sent - layout.size
        held = num_clients if self._num_own else min(max(held, 1), num_clients)
        self._free = [Buffer(new()) for _ in range(held)]
        self._of: list[Buffer | None] = [None] * num_clients
        self.reply = [self._free[0].reply] * num_clients
        self.base = [reply[: layout.size] for reply in self.reply]
        first = self._take()
        for client in range(num_clients):
            self._give(client, self._take() if self._num_own and client else first)

    @property
    def num_bytes(self) -> int:
        """Memory of all buffers, and of what is the own of forgotten clients."""
        distinct = {reply.data_ptr(): reply for reply in (*self.reply, *(buffer.reply for buffer in self._free))}
        return sum(4 * reply.numel() for reply in distinct.values())

    def own(self, client: int) -> Tensor:
        """What is a client's own: float32 (own,)."""
        reply = self.reply[client]
        return reply[reply.numel() - self._num_own :]

    def alone(self, client: int) -> Tensor:
        """Give a client a buffer that it holds alone. Returns its base of before, which may lie in another buffer."""
        before, buffer = self.base[client], self._of[client]
        if buffer is None or buffer.holders > 1:
            other = self._take()
            other.reply[self._size :].copy_(self.own(client))
            self._give(client, other)
        return before

    def join(self, client: int, other: int) -> None:
        """Let a client hold the buffer of another one. Nothing may be the own of any."""
        buffer = self._of[other]
        assert buffer is not None
        assert not self._num_own
        if buffer is not self._of[client]:
            self._give(client, buffer)

    def forget(self, client: int) -> None:
        """Give up a client's buffer, but not what is its own. The wire may still send from it: nobody writes it again."""
        own = self.own(client).clone()
        self._of[client], self.reply[client], self.base[client] = None, own, own[:0]

    def keep(self) -> Callable[[], None]:
        """Hold all buffers of clients as they are, until the returned function is called."""
        kept = list({id(buffer): buffer for buffer in self._of if buffer is not None}.values())
        for buffer in kept:
            buffer.holders += 1

        def let_go() -> None:
            for buffer in kept:
                self._drop(buffer)

        return let_go

    def put_away(self, client: int) -> None:
        """Take the memory from the buffer of a client that is not due soon, if it lies on a disk."""
        if self._disk:
            self._disk.put_away(self.reply[client])

    def _give(self, client: int, buffer: Buffer) -> None:
        before = self._of[client]
        if before is not None:
            self._drop(before)
        buffer.holders += 1
        self._of[client], self.reply[client], self.base[client] = buffer, buffer.reply, buffer.reply[: self._size]

    def _drop(self, buffer: Buffer) -> None:
        buffer.holders -= 1
        if not buffer.holders:
            self._free.append(buffer)

    def _take(self) -> Buffer:
        return self._free.pop() if self._free else Buffer(self._new())
