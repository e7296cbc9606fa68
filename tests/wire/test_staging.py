"""Buffers between a wire and a model that lies elsewhere: here both in host memory, but no tensor of theirs the same."""

import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from asyncfeded.model.flat import Entry, Layout
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.testing import FakeWire
from asyncfeded.wire.messages import Arrival, Order, Refused
from asyncfeded.wire.staging import Staging
from asyncfeded.wire.transfer import CHUNK
from conftest import run_asyncfeded

DIGITS = Path(__file__).resolve().parents[2] / "launch" / "digits.toml"
gpu_only = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that torch can use")
SIZE = 2 * CHUNK + 3
"""Of a model: three parts, the last of them short, with one statistic at the end."""
SENT = SIZE + CHUNK + 1
"""Of a message: behind the model, what is the client's own."""


def new_model(clients=2, device="cpu"):
    initial = torch.from_numpy(np.random.default_rng(0).random(SIZE, np.float32))
    entries = (Entry("w", (SIZE - 1,), 0), Entry("s", (1,), SIZE - 1))
    layout = Layout(entries, SIZE - 1, SIZE).with_own([("m", (SENT - SIZE,))])
    return GlobalModel(initial.to(device), layout, clients)


def staged(model, script=()):
    staging = Staging(model)
    staging.below = FakeWire(script)
    return staging


def weights(seed):
    return torch.from_numpy(np.random.default_rng(seed).random(SENT, np.float32))


def serve(wire, model, rounds, measure=None):
    """Merge so many updates, each measured part by part as it arrives if `measure` takes the parts; the gammas seen."""
    for client in range(2):
        wire.reply(Order(client, 0, 0, 1), model.reply[client], partial(model.hand_out, client))
    told = []
    for number in range(rounds):
        if measure:
            for start in range(0, SENT, CHUNK):
                measure(number % 2, weights(number), start, min(start + CHUNK, SENT))
        arrival = wire.next()
        told.append(model.distances(arrival.client, arrival.weights))
        model.keep_own(arrival.client, arrival.weights)
        model.merge(arrival.client, arrival.weights[:SIZE], 0.3)
        order = Order(arrival.client, number, model.version, 1)
        wire.reply(order, model.reply[arrival.client], partial(model.hand_out, arrival.client))
        model.finish_merge()
        wire.release(arrival)
    return told


def script(rounds):
    return [(number % 2, weights(number)) for number in range(rounds)]


@pytest.mark.parametrize("in_parts", [False, True])
def test_model_distances_and_replies_are_those_without_to_the_bit(in_parts):
    plain, model = new_model(), new_model()
    wire, staging = FakeWire(script(6)), staged(model, script(6))
    expected = serve(wire, plain, 6, plain.measure if in_parts else None)
    assert serve(staging, model, 6, staging.measure if in_parts else None) == expected
    assert torch.equal(model.x, plain.x)
    assert len(staging.below.replies) == len(wire.replies) == 8
    for sent, without in zip(staging.below.replies, wire.replies, strict=True):
        assert sent[:4] == without[:4]
        assert torch.equal(sent.weights, without.weights)


@gpu_only
@pytest.mark.parametrize("in_parts", [False, True])
def test_a_model_on_a_gpu_is_served_as_one_in_host_memory(in_parts):
    plain, model = new_model(), new_model(device="cuda")
    wire, staging = FakeWire(script(6)), staged(model, script(6))
    expected = serve(wire, plain, 6)
    assert np.allclose(serve(staging, model, 6, staging.measure if in_parts else None), expected, rtol=1e-5)
    assert torch.allclose(model.x.cpu(), plain.x, rtol=1e-5)
    for sent, without in zip(staging.below.replies, wire.replies, strict=True):
        assert torch.allclose(sent.weights, without.weights, rtol=1e-5)


@gpu_only
@pytest.mark.parametrize("clock", ["wall", "virtual"])
def test_a_run_whose_model_is_on_a_gpu_learns_and_goes_on(own_mpi, tmp_path, clock):
    where = ("device=cuda", "server_device=cuda", "run_dir=run", f"clock={clock}", "clients=2")
    done = own_mpi.train(3, DIGITS, *where, "checkpoint.every_updates=20", "limits.updates=100", cwd=tmp_path)
    assert done.status == 0, str(done)
    done = run_asyncfeded("resume", "run", "--ranks", 3, "limits.updates=200", cwd=tmp_path, env=own_mpi.env)
    assert done.status == 0, str(done)
    assert done.result["updates"] == 200
    assert done.result["metrics"]["accuracy"] > 0.9


def test_nothing_of_the_model_is_given_to_the_wire_and_nothing_of_the_wire_to_the_model():
    model = new_model()
    staging = staged(model, script(1))
    staging.reply(Order(0, 0, 0, 1), model.reply[0], partial(model.hand_out, 0))
    (sent,) = staging.below.replies
    assert sent.buffer.data_ptr() != model.reply[0].data_ptr()
    arrival = staging.next()
    assert arrival.weights.data_ptr() != staging.below._taken.weights.data_ptr()


def test_a_reply_is_made_in_one_go_and_handed_on_in_parts():
    model, made, handed = new_model(), [], []
    staging = Staging(model)
    staging.below = type("Below", (), {"reply": lambda self, order, weights, ready: handed.extend(parts(weights, ready))})()

    def ready(stop):
        made.append(stop)
        model.hand_out(0, stop)

    staging.reply(Order(0, 0, 0, 1), model.reply[0], ready)
    assert made == [SENT]
    assert torch.equal(torch.cat(handed)[:SIZE], model.x)


def parts(weights, ready):
    """What is there of each part when it has been made ready."""
    for start in range(0, SENT, CHUNK):
        stop = min(start + CHUNK, SENT)
        ready(stop)
        yield weights[start:stop].clone()


def test_an_update_that_was_refused_half_way_leaves_nothing_behind():
    model = new_model()
    staging = staged(model, [Refused(0, "of another length", True), (0, weights(1))])
    staging.reply(Order(0, 0, 0, 1), model.reply[0], partial(model.hand_out, 0))
    staging.measure(0, torch.full((SENT,), math.nan), 0, CHUNK)
    assert isinstance(staging.next(), Refused)
    staging.reply(Order(0, 1, 0, 1), model.reply[0], partial(model.hand_out, 0))
    for start in range(0, SENT, CHUNK):
        staging.measure(0, weights(1), start, min(start + CHUNK, SENT))
    arrival = staging.next()
    assert isinstance(arrival, Arrival)
    assert torch.equal(arrival.weights, weights(1))
    assert model.distances(0, arrival.weights) == new_model_distances(weights(1))


def new_model_distances(w):
    model = new_model()
    model.hand_out(0)
    return model.distances(0, w)


def test_memory_is_a_reply_for_each_client_and_one_update_however_many_come():
    model = new_model()
    staging = staged(model, script(6))
    serve(staging, model, 6, staging.measure)
    assert staging.num_bytes == 4 * SENT * (2 + 1)
