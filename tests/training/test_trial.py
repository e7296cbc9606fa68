"""What a worker tries before the first message, on modules and losses as people write them."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from asyncfeded.config import Config
from asyncfeded.model.flat import FlatModel
from asyncfeded.tasks.classification import Data
from asyncfeded.tasks.contract import TaskError
from asyncfeded.training.client import ClientData, Trainer
from asyncfeded.training.trial import Trial, find_statistics, new_module
from asyncfeded.wire.messages import Order


class Mine:
    """A task of 3 classes whose module is made by a function; `loss` takes outputs and targets."""

    name = "mine"
    optimizer = factor = step = None

    def __init__(self, make, loss=F.cross_entropy):
        self.model, self._loss = make, loss

    def loss(self, model, batch):
        inputs, targets = batch
        return self._loss(model(inputs), targets)


class Net(nn.Module):
    """A linear layer, and what `made` gives it; `each` is called in every forward pass."""

    def __init__(self, made=lambda net: None, each=lambda net, x: x):
        super().__init__()
        self.layer, self.each = nn.Linear(4, 3), each
        made(self)

    def forward(self, x):
        return self.layer(self.each(self, x))


def samples(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Data(torch.randn(n, 4, generator=generator), torch.arange(n) % 3)


def statistics(task, n=8):
    return find_statistics(task, 0, torch.device("cpu"), ClientData(samples(n), 4))


def attempt(task, data=None, batch_size=4, **keys):
    """What a worker does before the first message."""
    overrides = {"clock": "virtual", "clients": 2, "limits": {"updates": 1}} | keys
    config = Config.model_validate(overrides)
    data = data or [samples(9), samples(10)]
    found = find_statistics(task, 0, torch.device("cpu"), ClientData(data[0], batch_size))
    flat = FlatModel(new_module(task, 0)[0], "cpu", found)
    trainer = Trainer(task, flat, config.training, 0.0, 0)
    before = flat.buffer.clone()
    Trial(task, flat, trainer, config).run(range(len(data)), lambda client: ClientData(data[client], batch_size))
    assert torch.equal(flat.buffer, before)
    return flat


def batch_norm(momentum=0.1):
    return lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5, momentum=momentum), nn.Linear(5, 3))


# --- what travels


def test_what_training_changes_travels_and_masks_do_not():
    def made(net):
        net.norm = nn.BatchNorm1d(4)
        net.register_buffer("mask", torch.full((2,), -torch.inf))
        net.register_buffer("table", torch.rand(3))
        net.register_buffer("mean", torch.zeros(4))
        net.register_buffer("cache", torch.zeros(4), persistent=False)
        net.key = nn.Parameter(torch.zeros(4), requires_grad=False)
        net.base = nn.Parameter(torch.zeros(4), requires_grad=False)
        net.teacher = nn.Parameter(net.layer.weight.detach().clone(), requires_grad=False)

    def each(net, x):
        net.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        net.cache.add_(1)
        net.key.add_(0.1)  # as a momentum encoder
        with torch.no_grad():
            net.teacher.lerp_(net.layer.weight, 0.1)  # equal until the first step
        return net.norm(x)

    changed = ["key", "mean", "norm.running_mean", "norm.running_var", "teacher"]
    assert sorted(statistics(Mine(lambda: Net(made, each)))) == changed


def test_a_module_that_makes_parameters_in_its_first_batch_is_refused():
    def each(net, x):
        net.late = nn.Linear(4, 4)
        return net.late(x)

    with pytest.raises(TaskError, match=r"task mine, model: late\.weight, late\.bias appeared with the first batch"):
        statistics(Mine(lambda: Net(each=each)))


def test_a_module_without_all_sizes_is_refused():
    with pytest.raises(TaskError, match=r"task mine, model: weight has no values yet; give its layer all sizes"):
        statistics(Mine(lambda: nn.LazyLinear(3)))


def test_weights_that_follow_from_no_seed_are_refused():
    def made(net):
        net.layer.weight.data = torch.from_numpy(np.random.default_rng().random((3, 4), np.float32))

    with pytest.raises(TaskError, match=r"two calls gave two models, which differ in layer\.weight; draw what is random"):
        statistics(Mine(lambda: Net(made)))


def test_a_frozen_parameter_that_follows_from_no_seed_is_told_and_does_not_travel():
    def made(net):
        net.frozen = nn.Parameter(torch.from_numpy(np.random.default_rng().random(3)), requires_grad=False)

    with pytest.raises(TaskError, match=r"two calls gave two models, which differ in the frozen parameter frozen; draw"):
        statistics(Mine(lambda: Net(made)))


def test_weights_from_numpy_s_global_generator_follow_from_the_seed():
    def made(net):
        net.layer.weight.data = torch.from_numpy(np.random.rand(3, 4).astype(np.float32))

    assert statistics(Mine(lambda: Net(made))) == []


@pytest.mark.parametrize(
    ("loss", "sentence"),
    [
        (
            lambda o, y: F.cross_entropy(o, y, reduction="none"),
            r"gave back torch\.float32 of shape \(4,\), expected one number",
        ),
        (lambda o, y: F.cross_entropy(o, y).item(), r"gave back float, expected a torch\.Tensor"),
        (lambda o, y: None, "gave back NoneType, expected a torch"),
        (lambda o, y: (o.argmax(1) == y).sum(), r"gave back torch\.int64 of shape \(\), expected one number"),
        (lambda o, y: F.cross_entropy(o, y).detach(), r"does not depend on the parameters \(it has no gradient\)"),
        (lambda o, y: torch.ones((), requires_grad=True), r"does not depend on the parameters \(it has no gradient\)"),
    ],
)
def test_a_loss_that_is_none_is_refused(loss, sentence):
    with pytest.raises(TaskError, match=f"task mine, loss: {sentence}"):
        statistics(Mine(Net, loss))


# --- batches


def test_a_batch_that_the_model_cannot_take_is_told_with_client_and_size():
    """Client 1 has 9 samples, so that its third batch of 4 has one."""
    with pytest.raises(TaskError) as told:
        attempt(Mine(batch_norm()), [samples(8), samples(9)])
    assert str(told.value).startswith(
        "task mine, a batch of 1 in training (client 1 has 9 samples, in batches of 4): raised ValueError: Expected more"
    )
    assert '; set training.last_batch = "join" or "drop", or another training.batch_size\n' in str(told.value)


@pytest.mark.parametrize("last_batch", ["drop", "join"])
def test_a_last_batch_of_one_may_be_dropped_or_joined(last_batch):
    attempt(Mine(batch_norm()), [samples(8), samples(9)], training={"last_batch": last_batch})


def test_a_client_with_one_sample_is_told_what_would_help():
    with pytest.raises(TaskError, match=r"client 1 has 1 samples.*give the client more samples, or lower clients"):
        attempt(Mine(batch_norm()), [samples(8), samples(1)], training={"last_batch": "join"})


def test_every_size_of_batch_is_tried():
    """9 and 10 samples by 4: batches of 4, 2 and 1. Here a batch must be even."""

    def each(net, x):
        return x.reshape(2, -1, 4).flatten(0, 1)

    with pytest.raises(TaskError, match=r"a batch of 1 in training \(client 0 has 9 samples.*raised RuntimeError: shape"):
        attempt(Mine(lambda: Net(each=each)))


# --- data


def test_a_label_out_of_range_is_found_wherever_it_is():
    data = [samples(50), samples(50)]
    data[1].targets[47] = 3
    with pytest.raises(TaskError, match=r"client 1 has 50 samples, in batches of 4\): raised IndexError: Target 3 is out"):
        attempt(Mine(Net), data)


def test_an_input_that_is_not_finite_is_found_wherever_it_is():
    data = [samples(50), samples(50)]
    data[1].inputs[47, 2] = torch.nan
    with pytest.raises(
        TaskError, match=r"client 1 .*: its loss is nan.*; sample 47 of the client holds a value that is not"
    ):
        attempt(Mine(Net), data)
    attempt(Mine(Net), data, faults={"bad_loss": "take"})
    attempt(Mine(lambda: Net(each=lambda net, x: x.nan_to_num())), data)  # a model for which it means: missing


@pytest.mark.parametrize(
    "targets",
    [torch.rand(9, 3) > 0.5, torch.rand(9, 3, dtype=torch.cfloat), torch.ones(9, 3, dtype=torch.uint16), torch.zeros(9, 0)],
    ids=["bool", "complex", "uint16", "empty"],
)
def test_targets_of_every_type_are_taken(targets):
    attempt(Mine(Net, lambda o, y: o.square().mean()), [Data(samples(9).inputs, targets)] * 2)


def test_a_target_that_is_not_finite_is_found_wherever_it_is():
    targets = torch.zeros(9, 3)
    targets[7, 1] = torch.nan
    with pytest.raises(TaskError, match=r"its loss is nan.*; sample 7 of the client holds a value that is not finite"):
        attempt(Mine(Net, F.mse_loss), [samples(9)._replace(targets=torch.zeros(9, 3)), Data(samples(9).inputs, targets)])


def test_a_loss_of_one_number_may_have_dimensions():
    attempt(Mine(Net, lambda o, y: F.cross_entropy(o, y).reshape(1, 1)))


# --- one round twice


def counting(net, x):
    net.calls += 1
    return x * (1 + net.calls)


def steps(net, x):
    net.steps += 1
    return x * net.steps


def hidden_steps(net, x):
    net.steps.data.add_(1)  # no version tells of it
    return x * net.steps


@pytest.mark.parametrize(
    "make",
    [
        Net,
        batch_norm(),
        batch_norm(momentum=None),
        lambda: Net(lambda net: setattr(net, "calls", 0), counting),
        lambda: Net(lambda net: net.register_buffer("steps", torch.zeros((), dtype=torch.int64)), steps),
        lambda: Net(lambda net: net.register_buffer("steps", torch.zeros((), dtype=torch.int64)), hidden_steps),
        lambda: Net(lambda net: setattr(net, "steps", torch.zeros(())), steps),
        lambda: Net(lambda net: setattr(net, "none", nn.Parameter(torch.zeros(0)))),
        lambda: Net(each=lambda net, x: x * torch.rand(1) + np.random.rand()),
        lambda: nn.Sequential(nn.Dropout(), nn.utils.parametrizations.spectral_norm(nn.Linear(4, 3))),
    ],
    ids=[
        "plain",
        "batch norm",
        "cumulative",
        "attribute",
        "integer buffer",
        "hidden write",
        "tensor",
        "empty",
        "global generators",
        "spectral",
    ],
)
def test_state_that_is_put_back_is_taken(make):
    attempt(Mine(make), [samples(8), samples(8)])


def growing(net, x):
    net.queue.append(1)
    return x * len(net.queue)


def drawing(net, x):
    return x * float(net.rng.random())


@pytest.mark.parametrize(
    ("make", "where"),
    [
        (lambda: Net(lambda net: setattr(net, "queue", []), growing), r" \(changed: Net\.queue\)"),
        (lambda: Net(lambda net: setattr(net, "rng", np.random.default_rng(0)), drawing), r" \(changed: Net\.rng\)"),
        (lambda: Net(each=lambda net, x: x * np.random.default_rng().random()), ""),
    ],
    ids=["list", "generator", "no seed"],
)
def test_state_that_stays_from_round_to_round_is_refused(make, where):
    sentence = (
        f"task mine: the same round of client 0, trained twice.*differ in layer.weight.*from round to round{where}, or"
    )
    with pytest.raises(TaskError, match=sentence):
        attempt(Mine(make))


@pytest.mark.parametrize(
    ("late", "sentence"),
    [
        (lambda loss: None, r"gave back NoneType, expected a torch\.Tensor"),
        (lambda loss: loss.detach(), "does not depend on the parameters"),
        (lambda loss: loss.repeat(2), r"gave back torch\.float32 of shape \(2,\), expected one number"),
    ],
)
def test_a_loss_that_goes_wrong_later_is_told_with_round_and_client(late, sentence):
    wrong = []

    def loss(outputs, targets):
        mean = F.cross_entropy(outputs, targets)
        return late(mean) if wrong else mean

    task, config = Mine(Net, loss), Config.model_validate({"limits": {"updates": 1}})
    trainer = Trainer(task, attempt(task), config.training, 0.0, 0)
    wrong.append(True)
    with pytest.raises(TaskError, match=f"task mine, loss in round 5 of client 3: {sentence}"):
        trainer.round(Order(3, 5, 0, 1), ClientData(samples(9), 4), lambda: False)


def test_a_loss_that_remembers_is_refused():
    seen = []

    def loss(outputs, targets):
        seen.append(outputs.detach().mean())
        return F.cross_entropy(outputs, targets) * len(seen)

    with pytest.raises(TaskError, match="the module or the loss keeps something from round to round"):
        attempt(Mine(Net, loss))


def test_a_module_that_replaces_its_memory_is_refused():
    def made(net):
        net.register_buffer("mean", torch.zeros(4))

    def each(net, x):
        net.mean = net.mean + x.mean(0).detach()
        return x

    with pytest.raises(TaskError, match=r"round 0 of client 0: the model replaced the memory of mean"):
        attempt(Mine(lambda: Net(made, each)))
