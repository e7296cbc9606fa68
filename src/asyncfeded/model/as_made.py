"""What a module has besides the tensors that a message carries, as it was when the module was made, and the way back to it.

So a round knows nothing but the model that it was sent: neither the rounds before it, nor the other clients of its rank.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

REGISTERS = ("_parameters", "_buffers", "_modules")
"""Where a module has its tensors and its parts."""


class AsMade:
    """The state of a module when this object is made.

    Put back are tensors that are given, and all attributes of the module and its parts: every name means again what it
    meant, and a tensor holds what it held. What was changed inside another object (a list that grew, a generator that was
    drawn from) stays.

    Args:
        module: the module.
        local: tensors of the module that are put back, copied here.
        constant: tensors that must never change, by name; they are not copied.
    """

    def __init__(self, module: nn.Module, local: Iterable[Tensor], constant: Mapping[str, Tensor]) -> None:
        self._parts = [(part, _attributes(part), _registers(part)) for part in module.modules()]
        self._names = {id(part): name or type(module).__name__ for name, part in module.named_modules()}
        self._inside = self._look_inside()
        plain = [value for _, attributes, _ in self._parts for value in attributes.values() if isinstance(value, Tensor)]
        self._local = [(tensor, tensor.detach().clone()) for tensor in [*local, *plain] if _can_be_written(tensor)]
        self._constant = [(name, tensor, tensor._version) for name, tensor in constant.items()]

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        for part, attributes, registers in self._parts:
            now = part.__dict__
            if len(now) != len(attributes) + len(REGISTERS) + 1:
                for name in now.keys() - attributes.keys() - {*REGISTERS, "training"}:
                    del now[name]
            now.update(attributes)
            for register, members in registers:
                register.clear()
                register.update(members)
        for tensor, made in self._local:  # always: a write through .data or .numpy() leaves no trace
            tensor.copy_(made)

    def changed_constant(self) -> str:
        """The name of a constant tensor that was written; empty if none was."""
        return next((name for name, tensor, version in self._constant if tensor._version != version), "")

    def changed_inside(self) -> list[str]:
        """Attributes whose objects were changed inside, as far as can be seen."""
        return [name for name, now in self._look_inside().items() if self._inside.get(name, now) != now]

    def _look_inside(self) -> dict[str, str]:
        return {
            f"{self._names[id(part)]}.{name}": _inside(value)
            for part, attributes, _ in self._parts
            for name, value in attributes.items()
        }


def _attributes(part: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in part.__dict__.items() if name not in REGISTERS and name != "training"}


def _registers(part: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Each register of a module, and what it holds."""
    return [(part.__dict__[name], dict(part.__dict__[name])) for name in REGISTERS]


def _can_be_written(tensor: Tensor) -> bool:
    """Whether a tensor can change in place: no sparse or inference tensor can, nor one whose elements share memory."""
    if tensor.is_inference() or tensor.layout != torch.strided:
        return False
    return all(stride or size < 2 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _inside(value: object) -> str:
    """What is inside an object, if it is of a kind that modules keep state in."""
    if isinstance(value, Tensor):
        return str(value._version)
    if isinstance(value, np.random.Generator):
        return str(value.bit_generator.state)
    if isinstance(value, torch.Generator):
        return str(value.get_state().tolist())
    if hasattr(value, "getstate"):  # random.Random
        return str(value.getstate())
    if isinstance(value, dict | list | set | tuple) or type(value).__module__ in ("collections", "numpy"):
        return f"{len(value) if hasattr(value, '__len__') else ''} {str(value)[:1000]}"
    return ""
