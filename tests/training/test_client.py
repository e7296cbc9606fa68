"""A client's rounds against SGD worked by hand, and its loop against a wire without MPI."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn

from asyncfeded.config import Training
from asyncfeded.model.flat import FlatModel
from asyncfeded.seeds import Stream, seed_globals
from asyncfeded.tasks import load_task
from asyncfeded.tasks.classification import Data
from asyncfeded.tasks.contract import CheckedTask
from asyncfeded.training import client
from asyncfeded.training.client import ClientData, Trainer, work
from asyncfeded.wire.messages import NO_SCORES, Order


class Squares:
    """A task whose loss is the mean of (w x)^2: its gradient at w is 2 w mean(x^2)."""

    name = "mine"
    optimizer = factor = step = None

    def loss(self, model, batch):
        return model(batch[0]).square().mean()


def line(w=1.0):
    """The model w x."""
    flat = FlatModel(nn.Linear(1, 1, bias=False))
    flat.buffer.fill_(w)
    return flat


def trainer(flat, inputs=(1.0,), seed=0, client_id=0, slowdown=1.0, task=None, **training):
    data = Data(torch.tensor([[x] for x in inputs]), torch.zeros(len(inputs), dtype=torch.int64))
    settings = Training(**({"learning_rate": 0.1} | training))
    t = Trainer(task or Squares(), flat, settings, settings.proximal, seed)
    t.client, t.client_data = client_id, ClientData(data, settings.batch_size, slowdown)
    return t


def go(t, number, epochs, stopped):
    """A round of the trainer's one client."""
    return t.round(Order(t.client, number, 0, epochs), t.client_data, stopped)


def loop(wire, t, flat, host, lost_s=lambda order, round_s: 0.0):
    work(wire, t, lambda client_id: t.client_data, lost_s, flat, host)


def never():
    return False


# --- a round


def test_one_step_is_that_of_sgd():
    """x = 1, 2: the gradient at 1 is 2 (1 + 4) / 2 = 5, and w = 1 - 0.1 * 5."""
    flat = line()
    assert go(trainer(flat, [1.0, 2.0]), 0, 1, never)
    assert flat.buffer.item() == pytest.approx(0.5)


def test_K_epochs_are_K_passes_over_the_data():
    """One sample, x = 1: each step takes w to 0.8 w."""
    flat = line()
    go(trainer(flat), 0, 3, never)
    assert flat.buffer.item() == pytest.approx(0.8**3)


def test_samples_and_steps_are_counted_over_all_epochs():
    """Five samples by two are three steps."""
    t = trainer(line(), [1.0] * 5, batch_size=2)
    go(t, 0, 3, never)
    assert (t.samples, t.steps) == (15, 9)
    go(t, 1, 1, never)
    assert (t.samples, t.steps) == (5, 3)


def test_every_sample_is_seen_once_an_epoch():
    seen = []

    class Watch(Squares):
        def loss(self, model, batch):
            seen.extend(batch[1].tolist())
            return super().loss(model, batch)

    data = Data(torch.ones(7, 1), torch.arange(7))
    Trainer(Watch(), line(), Training(), 0.0, 0).round(Order(0, 0, 0, 2), ClientData(data, 3), never)
    assert sorted(seen[:7]) == sorted(seen[7:]) == list(range(7))
    assert seen[:7] != seen[7:]  # shuffled anew


@pytest.mark.parametrize(
    ("last_batch", "samples", "sizes"),
    [
        ("keep", 5, [2, 2, 1]),
        ("drop", 5, [2, 2]),
        ("join", 5, [2, 3]),
        ("drop", 1, [1]),
        ("join", 1, [1]),
        ("join", 4, [2, 2]),
    ],
)
def test_the_last_batch_is_kept_dropped_or_joined_to_the_one_before(last_batch, samples, sizes):
    """Fewer samples than a batch are one batch. Two epochs."""
    seen = []

    class Watch(Squares):
        def loss(self, model, batch):
            seen.append(len(batch[1]))
            return super().loss(model, batch)

    t = trainer(line(), [1.0] * samples, batch_size=2, last_batch=last_batch, task=Watch())
    go(t, 0, 2, never)
    assert seen == sizes + sizes
    assert (t.samples, t.steps) == (2 * sum(sizes), 2 * len(sizes))


def test_the_loss_is_the_mean_over_samples_not_over_batches():
    """(1 + 4 + 9) / 3 at w = 1, which so small a learning rate does not move; batches of 2 and 1."""
    t = trainer(line(), [1.0, 2.0, 3.0], batch_size=2, learning_rate=1e-30)
    go(t, 0, 1, never)
    assert t.loss == pytest.approx(14 / 3)


def test_weight_decay_is_added_to_the_gradient():
    """2 + 0.5 at w = 1."""
    flat = line()
    go(trainer(flat, weight_decay=0.5), 0, 1, never)
    assert flat.buffer.item() == pytest.approx(1 - 0.1 * 2.5)


def test_the_proximal_term_pulls_back_to_the_start_of_the_round():
    """At the start: w = 1 - 0.1 * 2 = 0.8. Then the gradient is 2 * 0.8 + mu (0.8 - 1) = 1.6 - 0.6: w = 0.7."""
    flat = line()
    go(trainer(flat, proximal=3.0), 0, 2, never)
    assert flat.buffer.item() == pytest.approx(0.7)


def test_the_proximal_term_of_the_next_round_counts_from_its_own_start():
    """From w = 10: 8, and then 8 - 0.1 (16 + 3 (8 - 10)) = 7."""
    flat = line()
    t = trainer(flat, proximal=3.0)
    go(t, 0, 2, never)
    flat.buffer.fill_(10.0)
    go(t, 1, 2, never)
    assert flat.buffer.item() == pytest.approx(7.0)


def test_momentum_is_that_of_sgd():
    """Gradients 2 and 1.6: w = 1 - 0.2 = 0.8, then 0.8 - 0.1 (1.6 + 0.5 * 2) = 0.54."""
    flat = line()
    go(trainer(flat, momentum=0.5), 0, 2, never)
    assert flat.buffer.item() == pytest.approx(0.54)


@pytest.mark.parametrize("keys", [{}, {"momentum": 0.9}, {"weight_decay": 0.1, "momentum": 0.5}], ids=str)
def test_a_round_is_that_of_torch_s_sgd_to_the_bit(keys):
    x, y = torch.randn(8, 3, generator=torch.Generator().manual_seed(1)), torch.arange(8) % 2
    modules = []
    for _ in range(2):
        torch.manual_seed(0)
        modules.append(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)))
    task = CheckedTask(load_task({"name": "synthetic"}), "synthetic")
    training = Training(learning_rate=0.3, batch_size=8, **keys)
    one = Trainer(task, FlatModel(modules[0]), training, 0.0, 3)
    assert one.round(Order(0, 2, 0, 4), ClientData(Data(x, y), 8), lambda: False)
    optimizer = torch.optim.SGD(modules[1].parameters(), lr=0.3, **keys)
    seed_globals(3, Stream.TRAINING, 0, 2)
    for _ in range(4):
        order = torch.randperm(8)
        optimizer.zero_grad()
        nn.functional.cross_entropy(modules[1](x[order]), y[order]).backward()
        optimizer.step()
    for p, q in zip(modules[0].parameters(), modules[1].parameters(), strict=True):
        assert torch.equal(p, q)


def test_no_compiler_of_torch_is_loaded_by_training():
    """It takes more than a second on every worker."""
    code = (
        "import sys; from asyncfeded import tasks; from asyncfeded.run import run;"
        "from asyncfeded.tasks.contract import CheckedTask;"
        "from asyncfeded.training.client import *;"
        "from asyncfeded.config import Training;"
        "task = CheckedTask(tasks.load_task({'name': 'synthetic', 'samples_max': 60}), 'synthetic');"
        "trainer = Trainer(task, FlatModel(task.model()), Training(), 0.0, 0);"
        "assert trainer.round(Order(0, 0, 0, 1), ClientData(task.client_data(0, 30, 0), 32), lambda: False);"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_momentum_starts_at_zero_in_every_round():
    """Two rounds of one step are 0.8 * 0.8."""
    flat = line()
    t = trainer(flat, momentum=0.5)
    go(t, 0, 1, never)
    go(t, 1, 1, never)
    assert flat.buffer.item() == pytest.approx(0.64)


def trained(seed, client_id, number):
    """Weights after an epoch in steps of one sample: with momentum they depend on the order, which follows from the seed."""
    flat = line()
    go(trainer(flat, [0.1 * i for i in range(20)], seed, client_id, batch_size=1, momentum=0.9), number, 1, never)
    return flat.buffer.item()


def test_seed_client_and_number_of_a_round_give_the_same_round():
    assert trained(1, 2, 3) == trained(1, 2, 3)


@pytest.mark.parametrize("other", [(2, 2, 3), (1, 3, 3), (1, 2, 4)], ids=["seed", "client", "number"])
def test_another_seed_client_or_number_gives_another_round(other):
    assert trained(*other) != trained(1, 2, 3)


def test_a_round_does_not_depend_on_the_rounds_before():
    flat = line()
    t = trainer(flat, [0.1 * i for i in range(20)], 1, 2, batch_size=1, momentum=0.9)
    go(t, 0, 2, never)
    flat.buffer.fill_(1.0)
    go(t, 3, 1, never)
    assert flat.buffer.item() == trained(1, 2, 3)


def test_a_round_is_given_up_after_the_step_in_which_the_stop_came():
    answers = iter([False, True])
    t = trainer(line(), [1.0] * 5, batch_size=1)
    assert not go(t, 0, 3, lambda: next(answers))
    assert t.steps == 2


def test_parameters_that_need_no_gradient_stay():
    flat = FlatModel(nn.Linear(1, 1))
    flat.buffer.fill_(1.0)
    flat.module.bias.requires_grad_(False)
    go(trainer(flat), 0, 1, never)
    assert flat.module.bias.item() == 1.0
    assert flat.module.weight.item() != 1.0


def test_a_model_is_trained_in_training_mode():
    flat = FlatModel(nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1)))
    flat.module.eval()
    before = flat.buffer[4:].clone()  # mean and variance
    go(trainer(flat, [1.0, 5.0]), 0, 1, never)
    assert (flat.buffer[4:] != before).all()


def test_a_model_that_replaces_its_memory_is_found():
    class Replacing(nn.Linear):
        def __init__(self):
            super().__init__(1, 1)
            self.register_buffer("last", torch.zeros(1))

        def forward(self, x):
            self.last = torch.ones(1)
            return super().forward(x)

    with pytest.raises(ValueError, match="replaced the memory of last"):
        go(trainer(FlatModel(Replacing())), 0, 1, never)


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by a second whenever it is read, and the list of what was slept."""
    slept, seconds = [], itertools.count()
    monkeypatch.setattr(client.time, "perf_counter", lambda: float(next(seconds)))
    monkeypatch.setattr(client.time, "sleep", slept.append)
    return slept


def test_a_slow_client_sleeps_after_each_step_in_proportion_to_it(clock):
    """Each step takes one second by this clock: four times as slow is three seconds more."""
    go(trainer(line(), [1.0] * 3, slowdown=4.0, batch_size=1), 0, 1, never)
    assert clock == [3.0, 3.0, 3.0]


def test_a_client_of_normal_speed_never_sleeps(clock):
    go(trainer(line(), [1.0] * 3), 0, 2, never)
    assert clock == []


def test_slowness_does_not_change_the_weights(clock):
    fast, slow = line(), line()
    go(trainer(fast, [1.0, 2.0]), 0, 2, never)
    go(trainer(slow, [1.0, 2.0], slowdown=8.0), 0, 2, never)
    assert fast.buffer.item() == slow.buffer.item()


# --- the loop


class FakeWire:
    """Hands out orders (version, K, weight), then a stop; keeps what is sent."""

    def __init__(self, host, orders, stop_after=None, clients=None):
        self.host, self.orders, self.polls = host, list(orders), 0
        self.clients, self.round = clients or [0] * len(orders), -1
        self.stop_after = stop_after
        self.sent, self.finished = [], 0

    def receive(self):
        if not self.orders:
            return None
        version, epochs, weight = self.orders.pop(0)
        self.host.fill_(weight)
        self.round += 1
        return Order(self.clients[self.round], self.round, version, epochs)

    def stopped(self):
        self.polls += 1
        return self.polls == self.stop_after

    def send(self, order, samples, steps, train_loss, scores, **times):
        assert scores is NO_SCORES
        figures = {"samples": samples, "steps": steps, "train_loss": train_loss}
        self.sent.append(order._asdict() | {"weight": self.host.item()} | figures | times)

    def finish(self):
        self.finished += 1


def test_an_update_answers_its_order():
    """Version and K come back; two epochs of one sample from 1 and one from 10: 0.64 and 8."""
    flat = line()
    wire = FakeWire(flat.buffer, [(0, 2, 1.0), (7, 1, 10.0)])
    loop(wire, trainer(flat), flat, flat.buffer)
    assert [(s["version"], s["epochs"], s["samples"], s["steps"]) for s in wire.sent] == [(0, 2, 2, 2), (7, 1, 1, 1)]
    assert [s["weight"] for s in wire.sent] == pytest.approx([0.64, 8.0])
    assert [s["train_loss"] for s in wire.sent] == pytest.approx([(1 + 0.64) / 2, 100.0])


def test_a_stop_between_rounds_is_answered_once():
    flat = line()
    wire = FakeWire(flat.buffer, [(0, 1, 1.0)])
    loop(wire, trainer(flat), flat, flat.buffer)
    assert (len(wire.sent), wire.finished) == (1, 1)


def test_a_stop_before_the_first_order_is_answered():
    flat = line()
    wire = FakeWire(flat.buffer, [])
    loop(wire, trainer(flat), flat, flat.buffer)
    assert (wire.sent, wire.finished) == ([], 1)


def test_a_stop_within_a_round_is_answered_without_an_update():
    """It comes in the second step of the second round."""
    flat = line()
    wire = FakeWire(flat.buffer, [(0, 1, 1.0), (1, 3, 1.0), (2, 1, 1.0)], stop_after=3)
    loop(wire, trainer(flat), flat, flat.buffer)
    assert [s["version"] for s in wire.sent] == [0]
    assert (wire.polls, wire.finished) == (3, 1)


def test_a_worker_trains_each_client_on_its_own_data():
    """Inputs 1 and 2: steps from 1 to 1 - 0.1 * 2 and to 1 - 0.1 * 8."""
    flat = line()
    lots = {
        3: ClientData(Data(torch.tensor([[1.0]]), torch.zeros(1)), 1),
        5: ClientData(Data(torch.tensor([[2.0]]), torch.zeros(1)), 1),
    }
    t = trainer(flat)
    wire = FakeWire(flat.buffer, [(0, 1, 1.0), (0, 1, 1.0)], clients=[3, 5])
    work(wire, t, lots.__getitem__, lambda order, round_s: 0.0, flat, flat.buffer)
    assert [(s["client"], s["weight"]) for s in wire.sent] == [(3, pytest.approx(0.8)), (5, pytest.approx(0.2))]


def test_failed_rounds_and_delays_pass_before_an_update_is_sent(clock):
    """By this clock every look takes a second: 4 s are one sleep of 0.05 s at a time until they have passed."""
    flat = line()
    wire = FakeWire(flat.buffer, [(0, 1, 1.0)])
    loop(wire, trainer(flat), flat, flat.buffer, lost_s=lambda order, round_s: 4.0)
    assert clock == [0.05, 0.05, 0.05]
    assert len(wire.sent) == 1


def test_a_stop_while_failed_rounds_pass_is_answered_without_an_update(clock):
    flat = line()
    wire = FakeWire(flat.buffer, [(0, 1, 1.0)], stop_after=2)
    loop(wire, trainer(flat), flat, flat.buffer, lost_s=lambda order, round_s: 1e9)
    assert (wire.sent, wire.finished) == ([], 1)


def test_a_model_elsewhere_is_copied_in_and_out():
    """As on a GPU: the wire's buffer is not the model's."""
    flat, host = line(5.0), torch.zeros(1)
    wire = FakeWire(host, [(0, 1, 1.0)])
    loop(wire, trainer(flat), flat, host)
    assert wire.sent[0]["weight"] == pytest.approx(0.8)


def test_compute_and_wait_are_measured_around_the_round(clock):
    """The clock is read when the loop begins, and before and after each round: one second between any two."""
    flat = line()
    wire = FakeWire(flat.buffer, [(0, 1, 1.0), (1, 1, 1.0)])

    class Instant(Trainer):
        def round(self, order, client_data, stopped):
            return True

    t = Instant(Squares(), flat, Training(), 0.0, 0)
    t.client_data = None
    loop(wire, t, flat, flat.buffer)
    assert [(s["compute_s"], s["wait_s"]) for s in wire.sent] == [(1.0, 1.0), (1.0, 1.0)]
