"""Pinned buffers between the wire, which knows only host memory, and a global model on a GPU. They are copied part by part.

The parts of an update are copied to the GPU as they arrive, and are measured there. A reply is merged and made on the GPU in
one piece. Each part of it is sent as soon as its copy is in host memory, while the next parts are still being copied. None
of this is needed where the model is in host memory.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from asyncfeded import accelerator
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.wire.messages import Arrival, Joined, Lost, Order, Refused, Stuck, Wire
from asyncfeded.wire.transfer import CHUNK


class Staging:
    """A `Wire` for a global model that lies in other memory than the buffers of the wire below.

    Args:
        model: the global model.

    Attributes:
        below: the wire below; it must be set before the first message.
    """

    below: Wire

    def __init__(self, model: GlobalModel) -> None:
        self._model, self._size, self._pinned = model, model.layout.sent, not model.x.is_cpu
        # By client: a reply, float32 (size,) in host memory, a copy of the one that the model holds.
        self._replies = [torch.empty(self._size, pin_memory=self._pinned) for _ in model.base]
        self._there: dict[int, Tensor] = {}  # by client: its update, in the memory of the model
        self._staged: dict[int, int] = {}  # by client: how many elements of it are there
        self._spare: list[Tensor] = []

    @property
    def num_bytes(self) -> int:
        """Memory of all buffers of this object."""
        return 4 * self._size * (len(self._replies) + len(self._there) + len(self._spare))

    def measure(self, client: int, w: Tensor, start: int, stop: int) -> None:
        """Take a part of an update that has arrived. The wire below calls this. See `GlobalModel.measure`."""
        self._model.measure(client, self._stage(client, w, start, stop), start, stop)

    def next(self) -> Arrival | Refused | Lost | Joined | Stuck | None:
        """See `Wire`. The weights of an arrival are in the memory of the model."""
        event = self.below.next()
        if not isinstance(event, Arrival):
            return event
        there = self._stage(event.client, event.weights, self._staged.get(event.client, 0), self._size)
        del self._staged[event.client]
        return event._replace(weights=there)

    def release(self, arrival: Arrival) -> None:
        """See `Wire`."""
        self._spare.append(self._there.pop(arrival.client))
        self.below.release(arrival)

    def reply(self, order: Order, weights: Tensor, ready: Callable[[int], object]) -> None:
        """See `Wire`."""
        reply = self._replies[order.client]
        wait_for: list[Callable[[], object]] = []

        def reply_ready(stop: int) -> None:
            if not wait_for:
                ready(self._size)
                wait_for.extend(self._copy(reply, weights, start) for start in range(0, self._size, CHUNK))
            if stop:  # nothing of an empty slice
                wait_for[(stop - 1) // CHUNK]()

        self.below.reply(order, reply, reply_ready)

    def now(self) -> float:
        """See `Wire`."""
        return self.below.now()

    def pause(self) -> None:
        """See `Wire`."""
        self.below.pause()

    def stop(self) -> int:
        """See `Wire`."""
        return self.below.stop()

    def _stage(self, client: int, w: Tensor, start: int, stop: int) -> Tensor:
        """Copy [start, stop) of a client's update into the memory of the model. Returns the update in that memory."""
        if client not in self._there:
            self._there[client] = self._spare.pop() if self._spare else self._model.x.new_empty(self._size)
        there = self._there[client]
        there[start:stop].copy_(w[start:stop], non_blocking=True)
        self._staged[client] = stop
        return there

    def _copy(self, reply: Tensor, there: Tensor, start: int) -> Callable[[], object]:
        """Start to copy a chunk into host memory. Returns a function that waits until it is there."""
        part = slice(start, start + CHUNK)
        reply[part].copy_(there[part], non_blocking=True)
        if not self._pinned:
            return int  # a function that does nothing: the copy is there
        return accelerator.mark(there.device).synchronize  # type: ignore[no-any-return]
