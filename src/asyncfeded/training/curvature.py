"""How fast the gradient changes along itself: an estimate of the largest curvature that a step of sgd meets."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from asyncfeded.model.flat import FlatModel

PART = 0.01
"""Length of the step that is tried, as a part of ||x||: float32 tells the gradients apart, and the loss is still near."""


class Curvature:
    """Measures ||g(x) - g(x - h g)|| / ||h g|| with h such that ||h g|| = PART ||x||, over the parameters.

    It holds two vectors of model size.

    Args:
        flat: the model.

    Attributes:
        value: what was measured last; NaN: there was no gradient, or no finite one.
    """

    def __init__(self, flat: FlatModel) -> None:
        self._buffer, self.value = flat.buffer, math.nan
        self._params = [p for p in flat.module.parameters() if p.requires_grad]
        self._g, self._x = flat.buffer.new_empty(flat.layout.num_params), torch.empty_like(flat.buffer)

    @contextmanager
    def elsewhere(self) -> Iterator[None]:
        """Put the model a little further along its gradients, which are there. Inside, find those of that place.

        Afterwards the model, its statistics and its gradients are as before, and `value` is set.
        """
        there, x = [p.grad for p in self._params], self._x[: len(self._g)]
        self._x.copy_(self._buffer)
        self._gather(self._g)
        length = float(self._g.norm())
        h = PART * float(x.norm()) / length if length else 0.0
        with torch.no_grad():
            for p, part in self._parts(self._g):
                p.sub_(part, alpha=h)
        yield
        self._buffer.copy_(self._x)
        self._gather(x)
        change = float(x.sub_(self._g).norm())
        self.value = change / (h * length) if 0 < h * length < math.inf and change < math.inf else math.nan
        for (p, part), gradient in zip(self._parts(self._g), there, strict=True):
            p.grad = gradient
            if gradient is not None and gradient.layout == torch.strided:
                gradient.copy_(part)  # in a group it is a part of a buffer that all steps write

    def _gather(self, into: Tensor) -> None:
        """Copy the gradients, 0 where there is none."""
        for p, part in self._parts(into):
            if p.grad is None:
                part.zero_()
            else:
                part.copy_(p.grad if p.grad.layout == torch.strided else p.grad.to_dense())

    def _parts(self, vector: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Each parameter with its part of a vector."""
        parts = torch.split(vector, [p.numel() for p in self._params])
        return ((p, part.view_as(p)) for p, part in zip(self._params, parts, strict=True))
