"""The state of a client's optimizer, where it is the client's own: it goes to and fro behind the model.

Before a round the optimizer takes its state from the buffer that has arrived, after it the buffer takes the state that the
optimizer has reached. A tensor that is not there yet, as all are in a client's first round, begins as a new optimizer makes
it. This file knows no optimizer: a state is tensors by name.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from asyncfeded.model.flat import FlatModel, Shape, own_views

THERE = "there"
"""Name of the first tensor, (tensors,): 1 for each of the others that a client has, 0 for one that it does not have yet."""


def own_tensors(state: Mapping[str, Tensor]) -> Iterator[Shape]:
    """The tensors behind the model.

    Args:
        state: of an optimizer that has taken a step with every parameter.
    """
    if state:
        yield THERE, (len(state),)
    for name, tensor in state.items():
        yield name, tuple(tensor.shape)


class Kept:
    """The optimizer's state in the buffer of a model.

    Args:
        flat: the model; its layout has `own_tensors`.
    """

    def __init__(self, flat: FlatModel) -> None:
        self._views = own_views(flat.buffer, flat.layout)
        self._there = self._views.pop(THERE)
        self._devices: dict[str, torch.device] = {}  # where the optimizer has its tensors: some count on the CPU

    def load(self) -> dict[str, Tensor]:
        """The state that has arrived. Its tensors are views of the buffer, or copies on another device."""
        there = zip(self._views.items(), self._there.tolist(), strict=True)
        return {name: view.to(self._devices.get(name, view.device)) for (name, view), one in there if one}

    @torch.no_grad()
    def store(self, state: Mapping[str, Tensor]) -> None:
        """Put a state into the buffer.

        Raises:
            ValueError: a tensor was not there, or had another shape, after the step that was tried.
        """
        self._there.copy_(torch.tensor([name in state for name in self._views]))
        for name, tensor in state.items():
            view = self._views.get(name)
            if view is None or view.shape != tensor.shape:
                expected = "no such tensor" if view is None else tuple(view.shape)
                raise ValueError(
                    f"the optimizer's {name} has shape {tuple(tensor.shape)}, expected {expected}, as after a step with "
                    f"gradients of 0 of every parameter; set training.optimizer_state = fresh, or take another optimizer"
                )
            self._devices[name] = tensor.device
            if tensor.data_ptr() != view.data_ptr():
                view.copy_(tensor)
