"""The state of an optimizer as a client's own: what travels, and training that goes on as if it had never been left."""

from functools import partial

import pytest
import torch
from torch import nn

from asyncfeded.config import Training
from asyncfeded.model.flat import FlatModel
from asyncfeded.seeds import Stream, seed_globals
from asyncfeded.tasks.classification import Data
from asyncfeded.tasks.contract import TaskError
from asyncfeded.training.batches import ClientData
from asyncfeded.training.client import Trainer
from asyncfeded.training.kept import Kept, own_tensors
from asyncfeded.training.optimizer import state_after_step
from asyncfeded.wire.messages import Order

STATE = {"weight.m": torch.ones(2, 3), "weight.step": torch.tensor(3.0), "bias.m": torch.ones(2)}


class Task:
    """Cross entropy."""

    name = "mine"
    optimizer = factor = step = None

    def loss(self, model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])


def new_flat(own=()):
    torch.manual_seed(0)
    return FlatModel(nn.Linear(3, 2), own=own)


def test_what_travels_is_every_tensor_of_the_state_and_which_of_them_are_there():
    assert list(own_tensors(STATE)) == [("there", (3,)), ("weight.m", (2, 3)), ("weight.step", ()), ("bias.m", (2,))]


def test_an_optimizer_without_a_state_has_nothing_to_send():
    assert list(own_tensors({})) == []


def test_a_state_that_is_stored_is_loaded_again_and_what_is_not_there_is_left_out():
    flat = new_flat(own_tensors(STATE))
    kept = Kept(flat)
    assert kept.load() == {}
    kept.store({name: tensor for name, tensor in STATE.items() if name != "bias.m"})
    assert {name: tensor.tolist() for name, tensor in kept.load().items()} == {
        "weight.m": 2 * [3 * [1.0]],
        "weight.step": 3.0,
    }
    assert flat.buffer[flat.layout.size :].tolist() == [1.0, 1.0, 0.0] + [1.0] * 6 + [3.0, 0.0, 0.0]
    flat.buffer[flat.layout.size :] = 0.0  # as a client's first order has it
    assert kept.load() == {}


def data(client):
    rng = torch.Generator().manual_seed(client)
    return ClientData(Data(torch.rand(7, 3, generator=rng), torch.randint(2, (7,), generator=rng)), 2)


def plain(client, rounds, make):
    """Weights and state of a loop that trains one client, and never makes its optimizer anew."""
    module = new_flat().module
    optimizer = make(module.parameters())
    inputs, targets = data(client).data
    for number in range(rounds):
        seed_globals(5, Stream.TRAINING, client, number)
        for batch in torch.randperm(7).split(2):
            optimizer.zero_grad()
            Task().loss(module, (inputs[batch], targets[batch])).backward()
            optimizer.step()
    weights = torch.cat([p.detach().flatten() for p in module.parameters()])
    state = [value.flatten() for p in module.parameters() for value in optimizer.state[p].values()]
    return weights, torch.cat([torch.ones(len(state)), *state])


@pytest.mark.parametrize(
    ("training", "make"),
    [
        (Training(learning_rate=0.1, momentum=0.9), partial(torch.optim.SGD, lr=0.1, momentum=0.9)),
        (Training(learning_rate=0.1, optimizer="adam"), partial(torch.optim.Adam, lr=0.1)),
    ],
    ids=["sgd", "adam"],
)
def test_clients_of_one_worker_train_on_as_a_loop_that_never_begins_anew_to_the_bit(training, make):
    """Two clients in turn, each with the buffer that came back last; a round that is given up leaves no trace."""
    flat = new_flat(own_tensors(state_after_step(dict(new_flat().module.named_parameters()), Task(), training)))
    trainer = Trainer(Task(), flat, training, 0.0, 5)
    buffers = [flat.buffer.clone() for _ in range(2)]
    for number in range(3):
        for client, buffer in enumerate(buffers):
            flat.buffer.copy_(buffer)
            assert not trainer.round(Order(client, number, 0, 1), data(client), lambda: True)
            flat.buffer.copy_(buffer)
            assert trainer.round(Order(client, number, 0, 1), data(client), lambda: False)
            buffer.copy_(flat.buffer)
    for client, buffer in enumerate(buffers):
        assert torch.equal(buffer, torch.cat(plain(client, 3, make)))


def test_an_optimizer_whose_state_grows_later_is_told_with_client_and_round():
    class Growing(torch.optim.SGD):
        def step(self):
            (p, *_) = self.param_groups[0]["params"]
            self.state[p]["late"] = torch.zeros(3)

    task = Task()
    task.optimizer = lambda parameters, at: Growing(parameters, lr=0.1)
    trainer = Trainer(task, new_flat([("there", (1,)), ("weight.m", ())]), Training(), 0.0, 5)
    expected = r"round 4 of client 1: the optimizer's weight.late has shape \(3,\), expected no such tensor, as after a step"
    with pytest.raises(TaskError, match=expected):
        trainer.round(Order(1, 4, 0, 1), data(1), lambda: False)
