"""All random numbers of a run come from its one seed.

A stream is identified by its purpose, client and round, never by the order in which messages arrive. So the same seed gives
the same data, the same initial model and the same local training on any number of machines.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import IntEnum

import numpy as np
import torch

from asyncfeded import accelerator


class Stream(IntEnum):
    """The purpose of a stream of random numbers. The values are part of the meaning of a seed: never renumber them."""

    MODEL = 0
    SPLIT = 1
    TRAINING = 2
    SPEED = 3
    ERRORS = 4
    DATA = 5
    EVALUATION = 6
    BATCH = 7


def numpy_rng(seed: int, stream: Stream, *indices: int) -> np.random.Generator:
    """A numpy generator for a stream; `indices` are, for example, the client and the round."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(stream, *indices)))


def seed_globals(seed: int, stream: Stream, *indices: int) -> None:
    """Seed the global generators for a stream: torch's (initial weights, shuffling, dropout), numpy's and Python's."""
    # Without a GPU the same bits, at once: torch.manual_seed notes the stack for every kind of GPU, 0.1 to 1 ms.
    _seed(torch.manual_seed if accelerator.kind() else torch.default_generator.manual_seed, seed, stream, *indices)


def generator(seed: int, stream: Stream, *indices: int) -> torch.Generator:
    """A generator of torch that draws what torch's global one draws after `seed_globals`."""
    return torch.Generator().manual_seed(_state(seed, stream, *indices)[0])


@contextmanager
def seeded(seed: int, *key: int) -> Iterator[None]:
    """Seed the CPU's global generators for a stream and its indices; afterwards they go on as if nothing had been drawn."""
    before = torch.get_rng_state(), np.random.get_state(), random.getstate()
    _seed(torch.default_generator.manual_seed, seed, *key)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        np.random.set_state(before[1])
        random.setstate(before[2])


def _seed(seed_torch: Callable[[int], object], seed: int, *key: int) -> None:
    first, state = _state(seed, *key)
    seed_torch(first)
    random.seed(first)
    np.random.seed(state.view(np.uint32))


def _state(seed: int, *key: int) -> tuple[int, np.ndarray]:
    """What a stream is seeded with: as one number, and as uint64 (1,)."""
    state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)
    return int(state[0]), state
