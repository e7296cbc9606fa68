"""The mean of the versions of a model, by hand in numpy."""

import numpy as np
import pytest
import torch

from asyncfeded.model.average import Average


def test_the_mean_is_the_one_of_the_formula():
    rng, mean = np.random.default_rng(3), np.zeros(5)
    average = Average(torch.zeros(5), 3.0)
    for t in range(1, 40):
        x = rng.normal(size=5)
        mean += 4.0 / (t + 3.0) * (x - mean)
        average.follow(torch.from_numpy(x).float(), t)
        average.follow(torch.full((5,), 1e9), t)  # the same version does not count twice
        assert average.mean.numpy() == pytest.approx(mean, rel=1e-5, abs=1e-6)


def test_the_first_version_is_the_mean_to_the_bit_and_the_start_does_not_count():
    average = Average(torch.full((3,), 1e9), 8.0)
    average.follow(torch.tensor([0.1, 0.2, 0.3]), 1)
    assert average.mean.tolist() == torch.tensor([0.1, 0.2, 0.3]).tolist()


def test_a_restored_mean_goes_on():
    one, other = Average(torch.zeros(2), 8.0), Average(torch.ones(2), 8.0)
    one.follow(torch.tensor([1.0, 2.0]), 1)
    other.restore(one.mean, 1)
    for average in (one, other):
        average.follow(torch.tensor([1.0, 2.0]), 1)
        average.follow(torch.tensor([5.0, 7.0]), 2)
    assert torch.equal(one.mean, other.mean)
