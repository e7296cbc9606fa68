"""A model as one contiguous buffer with named views: what a message carries, and what it does not.

The module's trainable parameters, and after them the other tensors of its state that training changes (such as batch-norm
statistics), *are* views into one float32 tensor: so sending a model copies nothing. Everything else in the module, which is
integer buffers, buffers that are not persistent and Python attributes, begins every round as it was made (as_made.py).
Masks, tables, and frozen parameters must not change. This file knows nothing of MPI or training.
"""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from asyncfeded.model.as_made import AsMade

Shape = tuple[str, tuple[int, ...]]
"""Name and shape of a tensor."""


@dataclass(frozen=True)
class Entry:
    """One named tensor of a model: its place is `buffer[offset : offset + prod(shape)]`."""

    name: str
    shape: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class Layout:
    """What lies where in the buffer that a message carries: the model, and behind it what its client keeps for itself.

    The first `num_params` elements of the model are parameters. The rest up to `size` holds the floating-point buffers
    ("statistics"): they are merged with the model, but do not count in its norms.
    """

    entries: tuple[Entry, ...]
    """The tensors of the model, in order."""
    num_params: int
    size: int
    """Elements of the model."""
    own: tuple[Entry, ...] = ()
    """The tensors that are the client's own, in order: they go with every message to and from it, and nowhere else."""

    @property
    def sent(self) -> int:
        """Elements of a message."""
        return self.size + sum(prod(entry.shape) for entry in self.own)

    @property
    def own_names(self) -> tuple[str, ...]:
        """Name and shape of each tensor of `own`, in order, as text."""
        return tuple(f"{entry.name} {entry.shape}" for entry in self.own)

    def with_own(self, tensors: Iterable[Shape]) -> "Layout":
        """The same model, with these tensors behind it."""
        return replace(self, own=tuple(_place(tensors, self.size)))

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of names, shapes and order. Equal if and only if two buffers can be exchanged."""
        text = "\n".join(f"{e.name} {e.shape} {e.offset}" for e in (*self.entries, *self.own))
        return hashlib.sha256(f"{self.num_params}\n{text}".encode()).digest()


EXPECTED = (
    "expected torch.float32: asyncfeded keeps a model as one float32 buffer; build the module with .float(), and compute "
    "in another type inside it (torch.autocast)"
)


COMPLEX = (
    "expected torch.float32: keep the real and the imaginary part as one parameter, torch.view_as_real(...), and compute "
    "with torch.view_as_complex(parameter)"
)


class ModuleState:
    """The tensors of a module by name, each once, under its first name: what may travel, and what never does.

    Args:
        module: any module.

    Raises:
        ValueError: a tensor has no values yet, or is not dense, a parameter is not float32, or none can be trained.

    Attributes:
        trained: parameters that require a gradient. They always travel.
        candidates: frozen parameters and persistent buffers of floating point. They travel if training changes them.
        local: all others. They begin every round as they were made.
    """

    def __init__(self, module: nn.Module) -> None:
        if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
            raise ValueError("a scripted module cannot keep its parameters in one buffer; leave out torch.jit.script")
        self.trained: dict[str, Tensor] = {}
        self.candidates: dict[str, Tensor] = {}
        self.local: dict[str, Tensor] = {}
        for name, parameter in module.named_parameters():
            (self.trained if parameter.requires_grad else self.candidates)[name] = parameter
        kept = {id(tensor) for tensor in module.state_dict(keep_vars=True).values()}
        for name, buffer in module.named_buffers():
            travels = id(buffer) in kept and buffer.is_floating_point()
            (self.candidates if travels else self.local)[name] = buffer
        for name, tensor in self.all.items():
            if is_lazy(tensor) or tensor.is_meta:
                raise ValueError(f"{name} has no values yet; give its layer all sizes, or run a batch through it in model()")
            if tensor.is_inference():
                raise ValueError(
                    f"{name} was made under torch.inference_mode, so that it cannot be trained; use torch.no_grad"
                )
            if tensor.layout != torch.strided:
                raise ValueError(f"{name} is {tensor.layout}, expected a dense tensor")
        if other := next((name for name, tensor in self.trained.items() if tensor.dtype != torch.float32), ""):
            advice = COMPLEX if self.trained[other].is_complex() else EXPECTED
            raise ValueError(f"{other} is {self.trained[other].dtype}, {advice}")
        kind = type(module).__name__
        if not self.num_params:
            why = "has no parameter that requires a gradient" if self.candidates else "has no parameters"
            raise ValueError(f"{kind} {why}: there is nothing to train")

    @property
    def num_params(self) -> int:
        """Number of elements of the parameters that are trained."""
        return sum(parameter.numel() for parameter in self.trained.values())

    @property
    def all(self) -> dict[str, Tensor]:
        """All of them, in the order of the attributes."""
        return self.trained | self.candidates | self.local

    def frozen(self, statistics: Collection[str]) -> dict[str, Tensor]:
        """The frozen parameters that do not travel: those that are not among the statistics."""
        return {
            name: tensor
            for name, tensor in self.candidates.items()
            if isinstance(tensor, nn.Parameter) and name not in statistics
        }

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) of names, shapes, types and roles."""
        roles = enumerate((self.trained, self.candidates, self.local))
        lines = [f"{role} {name} {tuple(t.shape)} {t.dtype}" for role, tensors in roles for name, t in tensors.items()]
        return hashlib.sha256("\n".join(lines).encode()).digest()


class FlatModel:
    """A module whose parameters, and whose other tensors that travel, are views into `buffer`.

    Args:
        module: any module with float32 parameters; moved to `device` and changed in place.
        device: where the buffer lives.
        statistics: names of the tensors that travel behind the parameters (of ModuleState.candidates); None: every
            persistent buffer of floating point.
        own: the tensors behind the model, which are no part of the module; they are 0 at first.

    Raises:
        ValueError: a tensor that travels is not float32 or shares memory with another, or there is nothing to train.

    Attributes:
        buffer: float32 (layout.sent,), contiguous, owned by this object. Writing it changes the module.
    """

    def __init__(
        self,
        module: nn.Module,
        device: torch.device | str = "cpu",
        statistics: Collection[str] | None = None,
        own: Iterable[Shape] = (),
    ) -> None:
        ModuleState(module)  # says what is wrong with it, before it is moved
        # Move first: moving a recurrent module later would give its parameters their own memory again.
        self.module = module.to(device)
        state = ModuleState(module)
        if statistics is None:
            statistics = [name for name, tensor in state.candidates.items() if not isinstance(tensor, nn.Parameter)]
        travelling = state.trained | {name: state.candidates[name] for name in state.candidates if name in statistics}
        for name, tensor in travelling.items():
            if tensor.dtype != torch.float32:
                raise ValueError(f"{name} is {tensor.dtype}, {EXPECTED}")
        _check_memory(travelling, state.all | _named_views_in_attributes(module))
        entries = tuple(_place(((name, tuple(tensor.shape)) for name, tensor in travelling.items()), 0))
        size = sum(tensor.numel() for tensor in travelling.values())
        self.layout = Layout(entries, state.num_params, size).with_own(own)
        self.buffer = torch.zeros(self.layout.sent, dtype=torch.float32, device=device)
        self._views: list[tuple[Entry, Callable[[], Tensor]]] = []  # how to reach each tensor through the module
        places = _buffer_places(module)
        with torch.no_grad():
            for entry in entries:
                view, tensor = _view(self.buffer, entry), travelling[entry.name]
                view.copy_(tensor)
                if isinstance(tensor, nn.Parameter):
                    tensor.data = view
                    self._views.append((entry, partial(module.get_parameter, entry.name)))
                else:
                    for owner, key in places[id(tensor)]:
                        setattr(owner, key, view)
                        self._views.append((entry, partial(getattr, owner, key)))
        constant = {name: tensor for name, tensor in state.candidates.items() if name not in travelling}
        self.as_made = AsMade(module, state.local.values(), constant)

    def check_finite(self) -> None:
        """Check that the model can be merged.

        Raises:
            ValueError: a value is not finite.
        """
        for name, view in named_views(self.buffer, self.layout).items():
            if not torch.isfinite(view).all():
                raise ValueError(f"{name} begins with a value that is not finite: no update could be merged with it")

    def state_dict(self, x: Tensor) -> dict[str, Tensor]:
        """What `load_state_dict(strict=True)` of the module takes, with the model x; everything else as it was made.

        Args:
            x: float32 (layout.size,). It is copied into `buffer`, which the tensors returned are views of.

        Raises:
            ValueError: the module's state holds something other than tensors.
        """
        self.as_made.restore()
        self.buffer[: self.layout.size].copy_(x)
        state: dict[str, Tensor] = self.module.state_dict()
        for name, value in state.items():
            if not isinstance(value, Tensor):
                raise ValueError(f"{name} of the module's state is {type(value).__name__}, expected a tensor")
        return state

    def check_views(self) -> None:
        """Check that the module's tensors still lie in the buffer, and that those outside that must not change did not.

        Raises:
            ValueError: the module has replaced the memory of a parameter or a buffer, instead of writing into it, or has
                written into a tensor that is constant.
        """
        start = self.buffer.data_ptr()
        for entry, tensor in self._views:
            if tensor().numel() and tensor().data_ptr() != start + 4 * entry.offset:
                raise ValueError(
                    f"the model replaced the memory of {entry.name} during training, so its new value would not be sent; "
                    f"update it in place (for example {entry.name.rsplit('.', 1)[-1]}.copy_(...))"
                )
        if name := self.as_made.changed_constant():
            raise ValueError(
                f"the model has written into {name}, which no step of the trial before training changed, so that it is not "
                f"sent; change it in forward() or in loss, in every batch, or register it with persistent=False: it then "
                f"begins every round as made"
            )


def digest_frozen(tensors: Mapping[str, Tensor]) -> str:
    """A line for each frozen parameter, in the form of files/digest.py: its SHA-256, its size in bytes, and its name."""
    lines = []
    for name, tensor in tensors.items():
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        lines.append(f"{hashlib.sha256(raw.data).hexdigest()} {raw.size} the frozen parameter {name}\n")
    return "".join(lines)


def named_views(buffer: Tensor, layout: Layout) -> dict[str, Tensor]:
    """The named tensors of the model in a buffer (layout.size,) or longer, as views, not copies."""
    return {entry.name: _view(buffer, entry) for entry in layout.entries}


def own_views(buffer: Tensor, layout: Layout) -> dict[str, Tensor]:
    """The named tensors behind the model in a buffer (layout.sent,), as views, not copies."""
    return {entry.name: _view(buffer, entry) for entry in layout.own}


def _place(tensors: Iterable[Shape], offset: int) -> Iterator[Entry]:
    """The places of tensors that lie one behind the other, from an offset on."""
    for name, shape in tensors:
        yield Entry(name, shape, offset)
        offset += prod(shape)


def _view(buffer: Tensor, entry: Entry) -> Tensor:
    return buffer[entry.offset : entry.offset + prod(entry.shape)].view(entry.shape)


def _buffer_places(module: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """The places of each buffer, as (owner, attribute), by the id of the tensor."""
    places: dict[int, list[tuple[nn.Module, str]]] = {}
    for owner in module.modules():
        for key, value in owner._buffers.items():
            places.setdefault(id(value), []).append((owner, key))
    return places


def _named_views_in_attributes(module: nn.Module) -> dict[str, Tensor]:
    """Tensors in plain attributes that have a gradient, by name: they may be views of a parameter, such as a transpose."""
    return {
        f"{owner}.{key}".lstrip("."): value
        for owner, part in module.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, Tensor) and value.requires_grad
    }


def _check_memory(travelling: Collection[str], tensors: dict[str, Tensor]) -> None:
    """Refuse tensors that lie in the memory of one that travels: in a buffer of its own that one would be another."""
    placed = sorted((t.data_ptr(), t.data_ptr() + t.nbytes, name) for name, t in tensors.items() if t.numel())
    for (_, end, one), (start, _, other) in pairwise(placed):
        if start < end and (one in travelling or other in travelling):
            raise ValueError(
                f"{one} and {other} share memory, but are two tensors: the model would no longer keep them equal; assign "
                f"the one torch.nn.Parameter to both, or compute the one from the other in forward()"
            )
