"""A model as one contiguous buffer with named views.

The module's parameters, and after them its floating-point buffers (such as batch-norm statistics), *are* views into one
float32 tensor: so sending a model copies nothing. Integer buffers stay in the module and are never sent. This file knows
nothing of MPI or training.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Entry:
    """One named tensor of a model: its place is `buffer[offset : offset + prod(shape)]`."""

    name: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Layout:
    """What lies where in a model's buffer: `entries` in order. The first `num_params` elements are parameters.

    The rest after them holds the floating-point buffers ("statistics"): they are sent with the model, but do not count in
    its norms.
    """

    entries: tuple[Entry, ...]
    num_params: int
    size: int

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of names, shapes and order. Equal if and only if two buffers can be exchanged."""
        text = "\n".join(f"{e.name} {e.shape} {e.offset}" for e in self.entries)
        return hashlib.sha256(f"{self.num_params}\n{text}".encode()).digest()


class FlatModel:
    """A module whose parameters and floating-point buffers are views into `buffer`.

    Args:
        module: any module with float32 parameters; moved to `device` and changed in place.
        device: where the buffer lives.

    Raises:
        ValueError: a parameter or floating-point buffer is not float32, or there is no parameter.

    Attributes:
        buffer: float32 (layout.size,), contiguous, owned by this object. Writing it changes the module.
    """

    def __init__(self, module: nn.Module, device: torch.device | str = "cpu") -> None:
        # Move first: moving a recurrent module later would give its parameters their own memory again.
        self.module = module.to(device)
        params = dict(module.named_parameters())
        owners = _float_buffers(module)
        stats = {name: getattr(*places[0]) for name, places in owners.items()}
        if not params:
            raise ValueError(f"{type(module).__name__} has no parameters: there is nothing to train")
        for name, tensor in (params | stats).items():
            if tensor.dtype != torch.float32:
                raise ValueError(
                    f"{name} is {tensor.dtype}, expected torch.float32: asyncfeded keeps a model as one float32 buffer; "
                    f"build the module with .float()"
                )
        entries, offset = [], 0
        for name, tensor in (params | stats).items():
            entries.append(Entry(name, tuple(tensor.shape), offset))
            offset += tensor.numel()
        self.layout = Layout(tuple(entries), sum(p.numel() for p in params.values()), offset)
        self.buffer = torch.empty(offset, dtype=torch.float32, device=device)
        self._views: list[tuple[Entry, Callable[[], Tensor]]] = []  # how to reach each tensor through the module
        with torch.no_grad():
            for entry in entries:
                view = _view(self.buffer, entry)
                if entry.name in params:
                    view.copy_(params[entry.name])
                    params[entry.name].data = view
                    self._views.append((entry, partial(module.get_parameter, entry.name)))
                else:
                    view.copy_(stats[entry.name])
                    for owner, key in owners[entry.name]:
                        setattr(owner, key, view)
                        self._views.append((entry, partial(getattr, owner, key)))

    def check_views(self) -> None:
        """Check that the module's tensors still lie in the buffer.

        Raises:
            RuntimeError: the module has replaced the memory of a parameter or a buffer, instead of writing into it.
        """
        start = self.buffer.data_ptr()
        for entry, tensor in self._views:
            if tensor().data_ptr() != start + 4 * entry.offset:
                raise RuntimeError(
                    f"the model replaced the memory of {entry.name} during training, so its new value would not be sent; "
                    f"update it in place (for example {entry.name.rsplit('.', 1)[-1]}.copy_(...))"
                )


def named_views(buffer: Tensor, layout: Layout) -> dict[str, Tensor]:
    """The named tensors of a buffer (layout.size,), as views, not copies."""
    return {entry.name: _view(buffer, entry) for entry in layout.entries}


def _view(buffer: Tensor, entry: Entry) -> Tensor:
    return buffer[entry.offset : entry.offset + prod(entry.shape)].view(entry.shape)


def _float_buffers(module: nn.Module) -> dict[str, list[tuple[nn.Module, str]]]:
    """The places of each distinct floating-point buffer, as (owner, attribute), under its first full name."""
    names: dict[int, str] = {}
    places: dict[str, list[tuple[nn.Module, str]]] = {}
    for prefix, owner in module.named_modules():
        for key, value in owner._buffers.items():
            if value is not None and value.is_floating_point():
                name = names.setdefault(id(value), f"{prefix}.{key}" if prefix else key)
                places.setdefault(name, []).append((owner, key))
    return places
