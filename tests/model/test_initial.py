"""Weights from elsewhere: all of them, and nothing that does not fit."""

import pytest
import torch
from torch import nn

from asyncfeded.model.initial import put_weights


class Tied(nn.Module):
    """A tied and a frozen tensor, a counter, and a table that is not kept."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.table, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.table.weight
        self.frozen = nn.Parameter(torch.randn(2).to(dtype), requires_grad=False)
        self.register_buffer("count", torch.tensor(0))
        self.register_buffer("angles", torch.rand(4), persistent=False)


def weights(**changes):
    """The state of such a module, with some tensors replaced, and without those that are None."""
    state = Tied().state_dict() | {name.replace("__", "."): value for name, value in changes.items()}
    return {name: value for name, value in state.items() if value is not None}


def test_everything_is_taken():
    module, given = Tied(), weights(count=torch.tensor(9))
    angles = module.angles.clone()
    put_weights(module, given)
    for name, value in given.items():
        assert torch.equal(module.state_dict()[name], value), name
    assert module.head.weight is module.table.weight
    assert not module.frozen.requires_grad
    assert torch.equal(module.angles, angles)


@pytest.mark.parametrize("absent", ["head__weight", "table__weight"])
def test_one_name_of_a_tied_tensor_is_enough(absent):
    module, given = Tied(), weights(**{absent: None})
    put_weights(module, given)
    assert torch.equal(module.head.weight, next(given[name] for name in ("head.weight", "table.weight") if name in given))


def test_a_type_that_holds_the_values_is_taken():
    module = Tied(torch.bfloat16)
    put_weights(module, weights(frozen=torch.tensor([1.5, float("nan")]), count=torch.tensor(3, dtype=torch.int32)))
    assert module.frozen.dtype == torch.bfloat16
    assert module.frozen[0] == 1.5
    assert module.frozen[1].isnan()
    assert module.count == 3


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"frozen": None, "count": None}, "missing: frozen, count"),
        ({"other": torch.zeros(1)}, "unexpected: other"),
        ({"frozen": torch.zeros(3)}, r"frozen is \(3,\), expected \(2,\)"),
        (
            {"frozen": torch.tensor([0.1, 0.2]).double() / 3},
            "frozen is torch.float64, with values that torch.float32 does not",
        ),
        ({"count": torch.tensor(1.5)}, "count is torch.float32, with values that torch.int64 does not hold"),
        ({"frozen": torch.tensor([1j, 0])}, "frozen is torch.complex64, with values that torch.float32 does not hold"),
        ({"head__weight": torch.zeros(5, 3)}, "table.weight and head.weight are one tensor of the model, but two different"),
        ({f"x{i}": torch.zeros(1) for i in range(7)}, "unexpected: x0, x1, x2, x3, x4 and 2 more"),
    ],
)
def test_what_does_not_fit_is_told_and_nothing_is_written(changes, problem):
    module = Tied()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=f"not the weights of this Tied; .*{problem}"):
        put_weights(module, weights(**changes))
    for name, value in before.items():
        assert torch.equal(module.state_dict()[name], value)
