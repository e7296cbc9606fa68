"""Slices of a model: where they are cut, and that a model in slices is the model in one piece to the bit."""

import math

import numpy as np
import pytest
import torch

from asyncfeded.model.flat import Entry, Layout
from asyncfeded.model.global_model import GlobalModel, is_finite
from asyncfeded.model.kernel import CHUNK
from asyncfeded.model.slices import Slice, cut

LAYOUT = Layout((), CHUNK + 5, 2 * CHUNK + 7, (Entry("momentum", (CHUNK,), 2 * CHUNK + 7),))


@pytest.mark.parametrize(
    ("sent", "servers", "expected"),
    [
        (10, 1, [10]),
        (10, 3, [10, 0, 0]),
        (3 * CHUNK, 2, [2 * CHUNK, CHUNK]),
        (4 * CHUNK + 1, 2, [3 * CHUNK, CHUNK + 1]),
        (4 * CHUNK, 4, [CHUNK] * 4),
    ],
)
def test_slices_are_whole_chunks_and_the_first_ranks_hold_more(sent, servers, expected):
    slices = cut(sent, servers)
    assert [each.size for each in slices] == expected
    assert [each.start for each in slices] == [sum(expected[:i]) for i in range(servers)]
    assert sum(each.chunks for each in slices) == -(-sent // CHUNK)


def test_a_slice_has_its_part_of_parameters_statistics_and_of_what_is_a_clients_own():
    """Of 4 chunks: one of parameters; one with 5 of them; 7 statistics and what is the client's own; the rest of that."""
    layouts = [each.of(LAYOUT) for each in cut(LAYOUT.sent, 4)]
    assert [(part.num_params, part.size, part.sent) for part in layouts] == [
        (CHUNK, CHUNK, CHUNK),
        (5, CHUNK, CHUNK),
        (0, 7, CHUNK),
        (0, 0, 7),
    ]


def in_slices(servers):
    """The same model on each of so many server ranks, which are asked one after the other; and what each has to add."""
    said = {}
    models = []
    for index, held in enumerate(cut(LAYOUT.sent, servers)):

        def gather(numbers, index=index):
            said[index] = numbers
            return np.concatenate([said[i] for i in sorted(said)])

        models.append(GlobalModel(initial()[held.start : min(held.stop, LAYOUT.size)], held.of(LAYOUT), 1, gather=gather))
    return models


def initial():
    return torch.from_numpy(np.random.default_rng(1).normal(size=LAYOUT.size).astype(np.float32))


def update():
    return torch.from_numpy(np.random.default_rng(2).normal(size=LAYOUT.sent).astype(np.float32))


@pytest.mark.parametrize("parts", [True, False], ids=["measured as it arrives", "measured at once"])
def test_norms_and_merges_are_those_of_the_whole_to_the_bit(parts):
    """The last rank that is asked knows the numbers of all."""
    results = []
    for servers in (1, 2, 3, 4, 6):
        models, reached = in_slices(servers), []
        for model, held in zip(models, cut(LAYOUT.sent, servers), strict=True):
            w = update()[held.start : held.stop]
            model.hand_out(0)
            model.x.mul_(1.5)
            for start in range(0, held.size, CHUNK) if parts else ():
                model.measure(0, w, start, min(start + CHUNK, held.size))
            reached = model.distances(0, w)
            model.keep_own(0, w)
            model.merge(0, model.without_own(w), 0.3)
            model.finish_merge()
            assert is_finite(model.x)
        dot = [model.dot(model.x, model.base[0]) for model in models][-1]
        sent = torch.cat([model.reply[0] for model in models])
        results.append((reached, dot, sent.numpy().tobytes()))
    assert results[1:] == results[:1] * 4


@pytest.mark.parametrize("place", [0, CHUNK + 4, CHUNK + 5, 2 * CHUNK + 6, 2 * CHUNK + 7, LAYOUT.sent - 1])
def test_a_value_that_is_not_finite_in_any_slice_makes_the_change_not_finite(place):
    w = update()
    w[place] = math.inf
    for model, held in zip(in_slices(4), cut(LAYOUT.sent, 4), strict=True):
        model.hand_out(0)
        moved, change = model.distances(0, w[held.start : held.stop])
    assert moved == 0.0
    assert not math.isfinite(change)


def test_an_empty_slice_has_nothing_and_takes_part():
    model = GlobalModel(torch.zeros(0), Slice(7, 7).of(LAYOUT), 2, gather=lambda mine: np.array([[9.0, 16.0]]))
    model.hand_out(0)
    assert model.distances(0, torch.zeros(0)) == (3.0, 4.0)
    assert model.norm(torch.zeros(0)) == 3.0
    assert is_finite(model.x)
