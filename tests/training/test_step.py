"""Steps of a client against a loop in plain torch, to the bit."""

import itertools
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from asyncfeded.config import Training
from asyncfeded.model.flat import FlatModel
from asyncfeded.seeds import Stream, seed_globals
from asyncfeded.tasks.classification import Data
from asyncfeded.training import step as step_room
from asyncfeded.training.batches import ClientData
from asyncfeded.training.client import Trainer
from asyncfeded.training.step import channels_last
from asyncfeded.wire.group import GroupLostError
from asyncfeded.wire.messages import Order

X = torch.randn(22, 3, generator=torch.Generator().manual_seed(1))
Y = torch.arange(22) % 2
ORDER = Order(client=3, round=2, version=7, epochs=2, steps=10, share=0.5)


def loss_of(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def new_module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Dropout(0.3), nn.Linear(5, 2))


def train(training, order=ORDER, proximal=0.0, data=(X, Y), module=None, **methods):
    """A trainer after a round, and its module."""
    task = SimpleNamespace(**{"name": "mine", "loss": loss_of, "optimizer": None, "factor": None, "step": None} | methods)
    flat = FlatModel(module or new_module())
    trainer = Trainer(task, flat, training, proximal, 5)
    assert trainer.round(order, ClientData(Data(*data), training.batch_size), lambda: False)
    return trainer, flat.module


def epochs(batch_size):
    """The batches of one epoch after the other, drawn as a client does."""
    while True:
        for rows in torch.randperm(len(X)).split(batch_size):
            yield X[rows], Y[rows]


def plain(optimizer_of, step, batch_size, steps):
    """A loop without the program: `step(module, batches, optimizer, number)` takes each step."""
    module = new_module().train()
    optimizer = optimizer_of(module.parameters())
    seed_globals(5, Stream.TRAINING, ORDER.client, ORDER.round)
    batches = epochs(batch_size)
    for number in range(steps):
        step(module, batches, optimizer, number)
    return module


def equal(one, two):
    return all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_a_rate_that_comes_with_the_order_takes_the_place_of_the_config_s():
    """Also under a schedule, which is a factor on it: from all of it in a line to half of it, at half of the run to 3/4."""
    _, ours = train(Training(learning_rate=0.5, batch_size=11), ORDER._replace(learning_rate=0.25))
    keys = {"schedule": "linear", "schedule_over": "run", "learning_rate_end": 1.0}
    _, scheduled = train(Training(learning_rate=2.0, batch_size=11, **keys), ORDER._replace(learning_rate=0.25))
    for module, rate in ((ours, 0.25), (scheduled, 0.1875)):
        _, theirs = train(Training(learning_rate=rate, batch_size=11))
        assert equal(module, theirs)


def test_adamw_with_clipping_and_a_schedule():
    """22 samples by 11 are two steps an epoch. The rate falls from 0.1 in a line over 20 steps, of which 10 were done."""
    keys = {"schedule": "linear", "schedule_length": 20, "clip_norm": 0.05, "weight_decay": 0.1}
    _, ours = train(Training(optimizer="adamw", learning_rate=0.1, batch_size=11, **keys))

    def step(module, batches, optimizer, number):
        optimizer.zero_grad()
        loss_of(module, next(batches)).backward()
        nn.utils.clip_grad_norm_(module.parameters(), 0.05)
        optimizer.param_groups[0]["lr"] = 0.1 * (1.0 - (10 + number) / 20)
        optimizer.step()

    theirs = plain(lambda parameters: torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1), step, 11, 4)
    assert equal(ours, theirs)


def test_steps_of_three_equal_batches_are_those_of_the_loss_over_three():
    """22 samples by 7 are batches of 7, 7, 7 and 1: an epoch is two steps, the second of which is the one that is left."""
    trainer, ours = train(Training(learning_rate=0.3, batch_size=7, accumulate=3))

    def step(module, batches, optimizer, number):
        parts = 1 if number % 2 else 3
        optimizer.zero_grad()
        for batch in itertools.islice(batches, parts):
            (loss_of(module, batch) / parts).backward()
        optimizer.step()

    assert equal(ours, plain(lambda parameters: torch.optim.SGD(parameters, lr=0.3), step, 7, 4))
    assert (trainer.steps, trainer.samples) == (4, 44)


def test_unequal_batches_of_a_step_count_by_their_samples():
    """Without dropout, a step of batches of 15 and 7 is that of all 22 samples, but for rounding."""
    module = [nn.Linear(3, 2), nn.Linear(3, 2)]
    module[1].load_state_dict(module[0].state_dict())
    order = ORDER._replace(epochs=1)
    _, parts = train(Training(batch_size=15, accumulate=2), order, module=module[0])
    trainer, whole = train(Training(batch_size=22), order, module=module[1])
    assert all(torch.allclose(p, q) for p, q in zip(parts.parameters(), whole.parameters(), strict=True))
    assert trainer.steps == 1


def test_K_in_steps_goes_on_through_epochs_that_are_shuffled_anew():
    """Five steps of batches of 7, 7, 7 and 1 end within the second epoch."""
    training = Training(learning_rate=0.3, batch_size=7, unit="steps", steps=5)
    trainer, ours = train(training, ORDER._replace(epochs=5))

    def step(module, batches, optimizer, number):
        optimizer.zero_grad()
        loss_of(module, next(batches)).backward()
        optimizer.step()

    assert equal(ours, plain(lambda parameters: torch.optim.SGD(parameters, lr=0.3), step, 7, 5))
    assert (trainer.steps, trainer.samples) == (5, 29)


def test_bf16_is_that_of_autocast_and_leaves_model_and_gradients_in_float32():
    trainer, ours = train(Training(learning_rate=0.3, batch_size=11, precision="bf16"))

    def step(module, batches, optimizer, number):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(module, next(batches))
        loss.backward()
        optimizer.step()

    assert equal(ours, plain(lambda parameters: torch.optim.SGD(parameters, lr=0.3), step, 11, 4))
    assert {p.dtype for p in ours.parameters()} == {p.grad.dtype for p in ours.parameters()} == {torch.float32}
    assert trainer.loss != train(Training(learning_rate=0.3, batch_size=11))[0].loss


def test_the_proximal_term_is_part_of_the_gradient_that_is_clipped():
    """w = 1, loss w: the gradient is 1, clipped 0.5. After a step of 1 it is 1 + 4 (0.5 - 1) = -1, clipped -0.5."""
    module = nn.Linear(1, 1, bias=False)
    nn.init.ones_(module.weight)
    data = (torch.ones(1, 1), torch.zeros(1))
    training = Training(learning_rate=1.0, clip_norm=0.5)
    _, trained = train(training, proximal=4.0, data=data, module=module, loss=lambda model, batch: model(batch[0]).mean())
    assert trained.weight.item() == pytest.approx(1.0)


# --- what a task does itself


def test_a_task_s_own_step_takes_it_with_the_optimizer_and_the_rate_of_the_config():
    def step(model, batch, optimizer):
        """Two steps with one batch."""
        for _ in range(2):
            optimizer.zero_grad()
            loss = loss_of(model, batch)
            loss.backward()
            optimizer.step()
        return loss.detach()

    keys = {"schedule": "linear", "schedule_over": "run"}
    trainer, ours = train(Training(optimizer="adam", learning_rate=0.1, batch_size=11, **keys), step=step)
    rate = 0.1 * 0.5
    last = []
    theirs = plain(
        lambda parameters: torch.optim.Adam(parameters, lr=rate),
        lambda module, batches, optimizer, number: last.append(step(module, next(batches), optimizer)),
        11,
        4,
    )
    assert equal(ours, theirs)
    assert trainer.loss == pytest.approx(torch.stack(last).mean().item())
    assert trainer.steps == 4


def test_a_task_is_told_where_the_client_is():
    told = []

    def factor(at):
        told.append(at)
        return 1.0

    train(Training(batch_size=11), factor=factor)
    assert [at.step for at in told] == [0, 1, 2, 3]
    assert {at._replace(step=0) for at in told} == {(3, 2, 0, 4, 10, 7, 0.5)}


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"clip_norm": 1.0}, "training.clip_norm"),
        ({"accumulate": 2}, "training.accumulate"),
        ({"precision": "bf16"}, "training.precision"),
    ],
)
def test_a_task_that_takes_its_steps_itself_is_not_asked_for_what_happens_inside_them(keys, key):
    with pytest.raises(ValueError, match=rf"mine takes its steps itself, which {key} would change; do that in its step"):
        train(Training(**keys), step=lambda model, batch, optimizer: None)


def test_nor_for_a_proximal_term():
    with pytest.raises(ValueError, match=r"which training.proximal, or a rule with such a term would change"):
        train(Training(), proximal=0.1, step=lambda model, batch, optimizer: None)


@pytest.mark.parametrize("given", [None, 3.0, torch.ones(2)], ids=str)
def test_a_step_that_gives_back_no_loss_is_told_with_round_and_client(given):
    with pytest.raises(ValueError, match=r"task mine, step in round 2 of client 3: gave back .*, the mean loss"):
        train(Training(), step=lambda model, batch, optimizer: given)


def test_what_a_step_raises_is_told_with_its_traceback():
    def step(model, batch, optimizer):
        return model.no_such_thing

    with pytest.raises(ValueError, match=r"step in round 2 of client 3, a batch of 22: raised AttributeError") as error:
        train(Training(), step=step)
    assert "return model.no_such_thing" in str(error.value)


@pytest.mark.parametrize("where", ["forward", "backward", "step"])
def test_a_rank_that_is_lost_inside_of_a_step_is_no_fault_of_the_task(where):
    """A batch norm that is synchronized waits for the other ranks of its client in both passes."""

    class Synchronized(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            if where != "backward":
                raise GroupLostError("group 0: its rank 1 has died")
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise GroupLostError("group 0: its rank 1 has died")

    def step(model, batch, optimizer):
        return loss_of(model, batch)

    module = nn.Sequential(new_module(), nn.Linear(2, 2))
    module[0].register_forward_hook(lambda _module, _inputs, output: Synchronized.apply(output))
    with pytest.raises(GroupLostError, match=r"^group 0: its rank 1 has died$"):
        train(Training(batch_size=11), module=module, step=step if where == "step" else None)


# --- devices and formats


def test_fp16_needs_a_gpu():
    with pytest.raises(ValueError, match=r"precision = fp16 needs a GPU, and the client trains on the CPU; set it to bf16"):
        train(Training(precision="fp16"))


def test_fp16_leaves_out_a_step_whose_gradient_is_not_finite_and_takes_the_next(monkeypatch):
    """On a CPU, which can do it slowly. The scale begins at 2^16: the first gradients do not fit into fp16."""
    monkeypatch.setattr(step_room, "check_device", lambda training, device: None)
    keys = {"learning_rate": 0.3, "batch_size": 11, "clip_norm": 1.0, "momentum": 0.5, "warmup": 2}
    order = ORDER._replace(epochs=20)

    def loss(model, batch):
        return 2.0 * loss_of(model, batch)

    trainer, half = train(Training(precision="fp16", **keys), order, loss=loss)
    assert trainer.steps == 40
    _, single = train(Training(**keys), order, loss=loss)
    before = new_module()
    for p, q, made in zip(half.parameters(), single.parameters(), before.parameters(), strict=True):
        assert p.isfinite().all()
        assert not torch.equal(p, made)
        assert torch.dot((p - made).flatten(), (q - made).flatten()) > 0


def test_images_in_any_batch_get_the_format_channels_last_and_nothing_else_does():
    image, row = torch.rand(2, 3, 4, 5), torch.rand(2, 3)
    data = Data(image, row)
    batch = channels_last({"pair": data, "list": [image, "text"], "tuple": (row, image)})
    assert isinstance(batch["pair"], Data)
    for formatted in (batch["pair"].inputs, batch["list"][0], batch["tuple"][1]):
        assert formatted.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(formatted, image)
    assert batch["pair"].targets is row
    assert batch["list"][1] == "text"


def test_a_compiler_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"compile needs a C\+\+ compiler, and no-such-compiler is not there"):
        train(Training(compile=True))


def test_plain_sgd_with_a_schedule_clipping_accumulation_and_bf16_loads_no_compiler_of_torch():
    """It takes more than a second on every worker."""
    code = (
        "import sys; sys.path.insert(0, 'tests');"
        "from training.test_step import *;"
        "train(Training(momentum=0.5, warmup=3, clip_norm=1.0, accumulate=2, precision='bf16', batch_size=5));"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_loss_is_asked_of_the_compiled_model(monkeypatch):
    """What the compiler makes is torch's; it takes half a minute."""
    made = []
    monkeypatch.setattr(torch, "compile", lambda module: made.append(module) or (lambda inputs: module(2.0 * inputs)))
    _, twice = train(Training(compile=True, batch_size=11))
    assert made == [twice]
    assert equal(twice, train(Training(batch_size=11), data=(2.0 * X, Y))[1])
