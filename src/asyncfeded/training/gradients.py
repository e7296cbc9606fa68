"""The gradients of a model as one buffer, which the ranks of a client add up after every step.

A step of several ranks is a step of one with the whole batch, up to the order of sums, since each divides its loss by the
samples of all. Behind the gradients travel which parameters have any, so that the optimizer leaves out those that have none
on every rank, and whether the leader was told to stop, so that all give up a round after the same step.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from asyncfeded.wire.group import Group
from asyncfeded.wire.sums import DeviceSum, make_sum


class Gradients:
    """The gradients of some parameters. After a backward pass they are views of one buffer.

    Args:
        parameters: those that are trained.
        group: the ranks that add them up.
    """

    def __init__(self, parameters: Sequence[Tensor], group: Group) -> None:
        self._parameters = list(parameters)
        sizes, device = [p.numel() for p in parameters], parameters[0].device
        num, flags = sum(sizes), len(sizes) + 1
        # On a GPU the flags travel by themselves: reading them there would wait for all that the GPU has yet to compute.
        self._on_device = DeviceSum(group, num, device) if device.type != "cpu" else None
        self._sum = make_sum(group, flags + (0 if self._on_device else num), torch.device("cpu"))
        flat = self._on_device.vector if self._on_device else self._sum.vector
        self._flags = self._sum.vector.numpy()[-flags:]
        self._views = [part.view_as(p) for part, p in zip(torch.split(flat[:num], sizes), parameters, strict=True)]
        self._there = np.zeros(flags, np.bool_)  # which parameters have a gradient here; the last: whether to stop
        for place, p in enumerate(parameters):
            p.register_post_accumulate_grad_hook(partial(self._take, place))  # type: ignore[no-untyped-call]

    def forget(self) -> None:
        """Begin a step: no parameter has a gradient."""
        self._there[:] = False

    def add_up(self, stopping: bool) -> bool:
        """Add up the gradients of all ranks of the group. Collective in the group.

        Args:
            stopping: whether this rank was told to stop.

        Returns:
            Whether any rank was: the step is then not to be taken.

        Raises:
            GroupLostError: a rank of the group has died.
        """
        there = self._there
        there[-1] = stopping
        for place in np.flatnonzero(~there[:-1]).tolist():
            self._views[place].zero_()
        self._flags[:] = there
        self._sum.add()
        if self._flags[-1]:
            return True
        if self._on_device:
            self._on_device.add()
        for place in np.flatnonzero(~there[:-1] & (self._flags[:-1] > 0)).tolist():
            self._parameters[place].grad = self._views[place]
        return False

    @torch.no_grad()
    def _take(self, place: int, parameter: Tensor) -> None:
        """Take a gradient that is there; the next one of this step is then added to it, in its place."""
        gradient, view = parameter.grad, self._views[place]
        assert gradient is not None
        if gradient.data_ptr() != view.data_ptr():
            if gradient.layout != torch.strided:
                raise ValueError("the gradient is sparse, which ranks_per_client cannot add up; give the layer sparse=False")
            view.copy_(gradient)
            parameter.grad = view
        self._there[place] = True
