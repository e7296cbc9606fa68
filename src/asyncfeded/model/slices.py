"""The slices of a model that several server ranks hold: where they are cut, and how their numbers come together.

A message (`Layout.sent` elements) is cut at the borders of chunks, so that a slice is measured and merged in the same parts
as the whole. Server rank i holds slice i of the global model, of every base and of every vector of the rule.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from asyncfeded.model.flat import Entry, Layout
from asyncfeded.model.kernel import CHUNK

Gather = Callable[[np.ndarray], np.ndarray]
"""Takes two numbers for each chunk of this slice, float64 (chunks, 2), and returns those of all chunks of the model, in
order. Collective over the server ranks."""


class Slice(NamedTuple):
    """Elements [start, stop) of a message."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """How many elements."""
        return self.stop - self.start

    @property
    def chunks(self) -> int:
        """How many chunks."""
        return -(-self.size // CHUNK)

    def of(self, layout: Layout) -> Layout:
        """The layout of this slice alone: parameters, then statistics, then what is the client's own, without names."""
        size, own = self._within(layout.size), self.size - self._within(layout.size)
        entries = (Entry("slice", (own,), size),) if own else ()
        return replace(layout, entries=(), num_params=self._within(layout.num_params), size=size, own=entries)

    def _within(self, end: int) -> int:
        """How many elements of the slice lie before an element of the message."""
        return min(max(end - self.start, 0), self.size)


def cut(sent: int, servers: int) -> list[Slice]:
    """The slices of a message: as many chunks for each server rank, or one more for the first ones; empty behind the last.

    Args:
        sent: elements of the message.
        servers: number of server ranks.
    """
    chunks = -(-sent // CHUNK)
    borders = [min(-(-chunks * i // servers) * CHUNK, sent) for i in range(servers + 1)]
    return [Slice(start, stop) for start, stop in pairwise(borders)]
