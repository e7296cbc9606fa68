"""What K epochs or steps are, against the batches of the epochs written out one by one."""

import itertools

import pytest

from asyncfeded.config import Training
from asyncfeded.training.batches import batch_sizes
from asyncfeded.training.rounds import Workload


def written_out(samples, batch_size, accumulate, last_batch):
    """The samples of each step of an epoch."""
    sizes = iter(batch_sizes(samples, batch_size, last_batch))
    return [sum(step) for step in iter(lambda: list(itertools.islice(sizes, accumulate)), [])]


@pytest.mark.parametrize("last_batch", ["keep", "drop", "join"])
@pytest.mark.parametrize("accumulate", [1, 2, 3, 10])
def test_steps_and_samples_are_those_of_the_epochs_written_out(last_batch, accumulate):
    for samples, batch_size in itertools.product(range(1, 14), (1, 3, 4, 20)):
        epoch = written_out(samples, batch_size, accumulate, last_batch)
        keys = {"last_batch": last_batch, "accumulate": accumulate}
        epochs = Workload(samples, batch_size, Training(**keys))
        steps = Workload(samples, batch_size, Training(**keys, unit="steps", steps=1))
        for number in range(1, 8):
            assert epochs.of(number)[:2] == (number * len(epoch), number * sum(epoch))
            assert steps.of(number)[:2] == (number, sum(itertools.islice(itertools.cycle(epoch), number)))


def test_seven_samples_by_two_in_steps_of_two_batches():
    """An epoch is 4 + 3 samples in 4 batches; five steps are two epochs, and a step of two batches."""
    assert Workload(7, 2, Training(accumulate=2, unit="steps", steps=5)).of(5) == (5, 7 + 7 + 4, 4 + 4 + 2)
