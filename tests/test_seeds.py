"""Streams of random numbers: named by their use, never by the order in which they are drawn."""

import numpy as np
import pytest
import torch

from asyncfeded.seeds import Stream, numpy_rng, seed_globals


def draw_numpy(*stream):
    return numpy_rng(*stream).integers(1 << 62)


def draw_torch(*stream):
    seed_globals(*stream)
    return torch.randint(1 << 62, ()).item()


both = pytest.mark.parametrize("draw", [draw_numpy, draw_torch])


@both
def test_the_same_stream_gives_the_same_numbers(draw):
    assert draw(7, Stream.TRAINING, 3, 5) == draw(7, Stream.TRAINING, 3, 5)


@both
@pytest.mark.parametrize(
    "other",
    [
        (8, Stream.TRAINING, 3, 5),
        (7, Stream.SPLIT, 3, 5),
        (7, Stream.TRAINING, 4, 5),
        (7, Stream.TRAINING, 3, 6),
        (7, Stream.TRAINING, 5, 3),
        (7, Stream.TRAINING, 3),
        (7, Stream.TRAINING, 3, 5, 0),
    ],
    ids=["seed", "use", "client", "round", "swapped", "fewer", "more"],
)
def test_another_stream_gives_other_numbers(draw, other):
    assert draw(*other) != draw(7, Stream.TRAINING, 3, 5)


@both
def test_a_stream_does_not_depend_on_what_was_drawn_before(draw):
    alone = draw(7, Stream.MODEL)
    for client in range(5):
        draw(7, Stream.TRAINING, client, 0)
    assert draw(7, Stream.MODEL) == alone


def test_nine_hundred_rounds_have_as_many_seeds():
    seeds = set()
    for client in range(30):
        for number in range(30):
            seed_globals(0, Stream.TRAINING, client, number)
            seeds.add(torch.initial_seed())
    assert len(seeds) == 900


def test_the_values_of_the_streams_are_never_renumbered():
    """A change of these, or of how they enter, would give every seed another meaning."""
    assert {stream.name: stream.value for stream in Stream} == {
        "MODEL": 0,
        "SPLIT": 1,
        "TRAINING": 2,
        "SPEED": 3,
        "ERRORS": 4,
        "DATA": 5,
        "EVALUATION": 6,
        "BATCH": 7,
    }
    expected = np.random.default_rng(np.random.SeedSequence(7, spawn_key=(2, 3, 5))).integers(1 << 62)
    assert draw_numpy(7, Stream.TRAINING, 3, 5) == expected
