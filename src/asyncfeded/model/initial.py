"""Puts weights from elsewhere into a module, strictly: every name, every shape, and no value changed by another type."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

TOLD = 5
"""How many names of a fault are told."""


@torch.no_grad()
def put_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Write weights into a module, in place.

    Everything that its `state_dict` has must be given: parameters, frozen ones too, and persistent buffers. Of the names of
    a tied tensor one is enough. A value may be of another type, as long as the type of the module holds it.

    Args:
        module: the module.
        weights: tensors by name, as `state_dict` gives them.

    Raises:
        ValueError: something is missing, is unexpected, or does not fit; nothing is written then.
    """
    expected = module.state_dict(keep_vars=True)
    given, names = dict(weights), dict[int, list[str]]()
    for name, tensor in expected.items():
        names.setdefault(id(tensor), []).append(name)
    faults = []
    for tied in names.values():
        there = [name for name in tied if name in given]
        for name in tied if there else ():
            value = given.setdefault(name, given[there[0]])
            if value is not given[there[0]] and not torch.equal(value, given[there[0]]):
                faults.append(f"{there[0]} and {name} are one tensor of the model, but two different ones here")
    if missing := [name for name in expected if name not in given]:
        faults.append(f"missing: {_some(missing)}")
    if other := [name for name in given if name not in expected]:
        faults.append(f"unexpected: {_some(other)}")
    unfit = [_unfit(name, given[name], expected[name]) for name in expected if name in given]
    if unfit := list(filter(None, unfit)):
        faults.append(_some(unfit))
    if faults:
        raise ValueError(f"not the weights of this {type(module).__name__}; {'; '.join(faults)}")
    module.load_state_dict(given)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - TOLD} more" if len(names) > TOLD else ""
    return ", ".join(names[:TOLD]) + more


def _unfit(name: str, given: Tensor, expected: object) -> str:
    """Why a tensor cannot take the values of another, as a phrase; empty if it can."""
    if not isinstance(expected, Tensor):
        return f"{name} is no tensor in the model"
    if given.shape != expected.shape:
        return f"{name} is {tuple(given.shape)}, expected {tuple(expected.shape)}"
    if given.dtype == expected.dtype:
        return ""
    back = given.to(expected.dtype).to(given.dtype) if _kind(given) == _kind(expected) else None
    if back is None or not ((back == given) | (given != given)).all():
        return f"{name} is {given.dtype}, with values that {expected.dtype} does not hold"
    return ""


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_complex(), tensor.is_floating_point()
