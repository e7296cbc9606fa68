"""What a client does in a round of K epochs or K steps: how many steps, batches and samples.

The server knows it too, and takes no update that says something else.
"""

from typing import NamedTuple

from asyncfeded.config import Training
from asyncfeded.training.batches import batch_sizes


class Work(NamedTuple):
    """A round."""

    steps: int
    samples: int
    batches: int


class Workload:
    """What K means for one client.

    A step takes `training.accumulate` batches, the last step of an epoch those that are left. With training.unit = "steps"
    the batches go on through epochs, each shuffled anew, until K steps are done; the next round begins with a new epoch.

    Args:
        samples: number of the client's training samples, at least 1.
        batch_size: samples per batch of this client.
        training: how to train.
    """

    def __init__(self, samples: int, batch_size: int, training: Training) -> None:
        sizes = batch_sizes(samples, batch_size, training.last_batch)  # not kept: a server has thousands of clients
        self._accumulate, self._in_steps = training.accumulate, training.unit == "steps"
        self._full = batch_size * training.accumulate  # samples of a step, unless it is the last one of an epoch
        self._epoch = Work(-(-len(sizes) // training.accumulate), sum(sizes), len(sizes))

    def of(self, epochs: int) -> Work:
        """A round with K = `epochs`."""
        steps, samples, batches = self._epoch
        if not self._in_steps:
            return Work(epochs * steps, epochs * samples, epochs * batches)
        whole, rest = divmod(epochs, steps)
        return Work(epochs, whole * samples + rest * self._full, whole * batches + rest * self._accumulate)

    def batches_of(self, step: int) -> int:
        """The batches of a step, from 0, of a round."""
        steps, _, batches = self._epoch
        return self._accumulate if (step + 1) % steps else batches - (steps - 1) * self._accumulate

    def samples_of(self, step: int) -> int:
        """The samples of a step, from 0, of a round."""
        steps, samples, _ = self._epoch
        return self._full if (step + 1) % steps else samples - (steps - 1) * self._full
