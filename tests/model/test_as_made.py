"""The way back to a module as it was made: what is put back, what must not change, and what can only be seen."""

import numpy as np
import pytest
import torch
from torch import nn

from asyncfeded.model.flat import FlatModel


class Busy(nn.Module):
    """Changes in every call what a module may have besides its parameters."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.calls, self.seen = 0, []
        self.rng = np.random.default_rng(0)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("cache", torch.zeros(2), persistent=False)
        self.register_buffer("late", None)

    def forward(self, x):
        self.calls += 1
        self.new = self.calls
        self.steps += 1
        self.cache = self.cache + 1
        self.late = torch.ones(1)
        self.extra = nn.Linear(1, 1)
        return self.layer(x)


def test_attributes_and_buffers_begin_again_as_they_were_made():
    flat = FlatModel(Busy())
    cache, steps = flat.module.cache, flat.module.steps
    flat.module(torch.zeros(1, 2))
    assert (flat.module.calls, flat.module.steps.item(), flat.module.cache.tolist()) == (1, 1, [1.0, 1.0])
    flat.as_made.restore()
    module = flat.module
    assert (module.calls, module.steps.item(), module.cache.tolist(), module.late) == (0, 0, [0.0, 0.0], None)
    assert not hasattr(module, "new")
    assert not hasattr(module, "extra")
    assert module.cache is cache
    assert module.steps is steps


def test_the_model_itself_and_its_mode_stay():
    flat = FlatModel(Busy())
    flat.buffer.fill_(5.0)
    flat.module.eval()
    flat.as_made.restore()
    assert flat.buffer.tolist() == [5.0] * 3
    assert flat.module.layer.bias.data_ptr() == flat.buffer[2:].data_ptr()
    assert not flat.module.training


def test_what_was_changed_inside_an_object_is_named():
    flat = FlatModel(Busy())
    assert flat.as_made.changed_inside() == []
    flat.module.seen.append(1)
    flat.module.rng.random()
    assert flat.as_made.changed_inside() == ["Busy.seen", "Busy.rng"]


class Table(nn.Module):
    """A weight and a table that is kept."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("mask", torch.tensor([0.0, -torch.inf]))


def test_a_constant_is_no_part_of_a_message_and_need_not_be_finite():
    flat = FlatModel(Table(), statistics=())
    assert [entry.name for entry in flat.layout.entries] == ["weight"]
    flat.check_finite()
    flat.check_views()


@pytest.mark.parametrize("name", ["mask", "frozen"])
def test_a_constant_that_is_written_is_found(name):
    flat = FlatModel(Table(), statistics=())
    with torch.no_grad():
        getattr(flat.module, name).add_(1)
    with pytest.raises(ValueError, match=rf"has written into {name}, which no step of the trial.*persistent=False"):
        flat.check_views()


def test_a_frozen_parameter_that_training_changes_travels_behind_the_parameters():
    flat = FlatModel(Table(), statistics=["frozen"])
    assert [entry.name for entry in flat.layout.entries] == ["weight", "frozen"]
    assert (flat.layout.num_params, flat.layout.size) == (1, 2)
    flat.buffer.fill_(3.0)
    assert flat.module.frozen.item() == 3.0
