"""The state of an optimizer as a client's own: what travels, and training that goes on as if it had never been left."""

import torch
from torch import nn

from asyncfeded.config import Training
from asyncfeded.model.flat import FlatModel, own_views
from asyncfeded.seeds import Stream, seed_globals
from asyncfeded.tasks.classification import Data
from asyncfeded.training.batches import ClientData
from asyncfeded.training.client import Trainer
from asyncfeded.training.kept import Kept, own_tensors
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


def plain(client, rounds, momentum):
    """Weights and momentum of a loop that trains one client, and never makes its optimizer anew."""
    module = new_flat().module
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=momentum)
    inputs, targets = data(client).data
    for number in range(rounds):
        seed_globals(5, Stream.TRAINING, client, number)
        for batch in torch.randperm(7).split(2):
            optimizer.zero_grad()
            Task().loss(module, (inputs[batch], targets[batch])).backward()
            optimizer.step()
    weights = torch.cat([p.detach().flatten() for p in module.parameters()])
    return weights, torch.cat([optimizer.state[p]["momentum_buffer"].flatten() for p in module.parameters()])


def test_clients_of_one_worker_train_on_as_a_loop_that_never_begins_anew_to_the_bit():
    """Two clients in turn, each with the buffer that came back last; a round that is given up leaves no trace."""
    own = list(own_tensors({f"{name}.momentum_buffer": p for name, p in nn.Linear(3, 2).named_parameters()}))
    flat = new_flat(own)
    trainer = Trainer(Task(), flat, Training(learning_rate=0.1, momentum=0.9), 0.0, 5)
    buffers = [flat.buffer.clone() for _ in range(2)]
    for number in range(3):
        for client, buffer in enumerate(buffers):
            flat.buffer.copy_(buffer)
            assert not trainer.round(Order(client, number, 0, 1), data(client), lambda: True)
            flat.buffer.copy_(buffer)
            assert trainer.round(Order(client, number, 0, 1), data(client), lambda: False)
            buffer.copy_(flat.buffer)
    for client, buffer in enumerate(buffers):
        weights, momentum = plain(client, 3, 0.9)
        assert torch.equal(buffer[: flat.layout.size], weights)
        views = own_views(buffer, flat.layout)
        assert views.pop("there").tolist() == [1.0, 1.0]
        assert torch.equal(torch.cat([view.flatten() for view in views.values()]), momentum)
