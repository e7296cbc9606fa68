"""Steps of a client of several ranks against those of one rank with the whole batch. On every rank (see ranks.py)."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from asyncfeded.config import Training
from asyncfeded.model.flat import FlatModel
from asyncfeded.tasks.classification import Data
from asyncfeded.training.batch_norm import synchronize
from asyncfeded.training.batches import ClientData
from asyncfeded.training.client import Trainer
from asyncfeded.wire.messages import Order
from mpi.ranks import together

X = torch.randn(43, 3, generator=torch.Generator().manual_seed(1))
Y = torch.arange(43) % 2
STEPS = 20


def loss_of(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def new_module(norm=nn.Identity):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), norm(), nn.ReLU(), nn.Linear(8, 2))


def trained(training, group=None, module=None, stopped=lambda: False, task=()):
    """The trainer of a round of 20 steps, whether it was finished, and the model after it."""
    task = SimpleNamespace(**{"name": "mine", "loss": loss_of, "optimizer": None, "factor": None, "step": None} | dict(task))
    module = module or new_module()
    if group and training.sync_batch_norm:
        synchronize(module, group, torch.device("cpu"))
    flat = FlatModel(module)
    trainer = Trainer(task, flat, training, 0.0, 5, group)
    if group:
        group.begun = True
    finished = trainer.round(Order(3, 2, 7, STEPS), ClientData(Data(X, Y), training.batch_size), stopped)
    return trainer, finished, flat


def same_on_all_ranks(comm, buffer):
    return len({value.tobytes() for value in comm.allgather(buffer.numpy())}) == 1


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"momentum": 0.9, "weight_decay": 1e-2, "clip_norm": 0.1},
        {"optimizer": "adamw", "learning_rate": 1e-3, "accumulate": 2},
        {"last_batch": "join", "proximal": 0.1, "schedule": "cosine", "schedule_length": 20},
    ],
    ids=str,
)
@together
def test_a_step_of_several_ranks_is_one_of_the_whole_batch(world, comm, group, keys):
    """43 samples in batches of 10, the last of 3: fewer than 4 ranks."""
    training = Training(**{"unit": "steps", "steps": STEPS, "batch_size": 10} | keys)
    alone, _, one = trained(training)
    ours, finished, several = trained(training, group)
    assert finished
    assert (ours.samples, ours.steps) == (alone.samples, alone.steps)
    assert ours.loss == pytest.approx(alone.loss, rel=1e-6)
    torch.testing.assert_close(several.buffer, one.buffer, rtol=0, atol=1e-6)
    assert same_on_all_ranks(comm, several.buffer)


@together
def test_a_parameter_that_no_rank_has_a_gradient_for_is_left_out(world, comm, group):
    """The second layer has none in any step, and weight decay would change it."""
    training = Training(unit="steps", steps=STEPS, batch_size=10, weight_decay=0.1, momentum=0.9)

    def loss(model, batch):
        return model[0](batch[0]).square().mean()

    _, _, one = trained(training, task={"loss": loss})
    _, _, several = trained(training, group, task={"loss": loss})
    torch.testing.assert_close(several.buffer, one.buffer, rtol=0, atol=1e-6)
    assert torch.equal(several.module[3].weight, new_module()[3].weight)


@together
def test_a_group_gives_up_a_round_together(world, comm, group):
    """The leader is told to stop in its third step; no rank takes that step."""
    asked = []

    def stopped():
        asked.append(1)
        return world.rank == 0 and len(asked) == 3

    training = Training(unit="steps", steps=STEPS, batch_size=10)
    trainer, finished, _ = trained(training, group, stopped=stopped)
    assert not finished
    assert trainer.steps == 2


@together
def test_what_is_tried_before_training_sends_nothing(world, comm, group):
    """Only one rank trains: a round of its parts."""
    training = Training(unit="steps", steps=STEPS, batch_size=10)
    if world.rank == 0:
        flat = FlatModel(new_module())
        task = SimpleNamespace(name="mine", loss=loss_of, optimizer=None, factor=None, step=None)
        trainer = Trainer(task, flat, training, 0.0, 5, group)
        assert trainer.round(Order(3, 2, 7, STEPS), ClientData(Data(X, Y), 10), lambda: False)
