"""Task digits splits scikit-learn's images among the clients, and refuses splits that cannot be."""

import sys
from collections import Counter

import numpy as np
import pytest
import torch

from asyncfeded import tasks
from asyncfeded.tasks.digits import _load
from tasks.data import digits, samples, split

splits = pytest.mark.parametrize("kind", ["even", "dirichlet"])


@splits
def test_digits_are_dealt_with_none_lost_and_none_twice(kind):
    """What all clients of a split get together is what one client alone gets, and with the test data all 1797 images."""
    from sklearn.datasets import load_digits

    task = digits(split=kind)
    dealt = sum((samples(data) for data in split(task, 7)), Counter())
    bunch = load_digits()
    everything = Counter(
        ((image / 16).astype(np.float32).tobytes(), int(label))
        for image, label in zip(bunch.images, bunch.target, strict=True)
    )
    assert dealt + samples(task.test_data()) == everything
    assert dealt.total() == 1438


@splits
def test_digits_of_training_are_not_those_of_testing(kind):
    task = digits(split=kind)
    test = samples(task.test_data())
    assert test.total() == 359
    assert not set(test) & set().union(*map(samples, split(task, 3)))


@splits
def test_the_same_seed_gives_the_same_split(kind):
    for one, two in zip(split(digits(split=kind), 5, 3), split(digits(split=kind), 5, 3), strict=True):
        assert torch.equal(one.inputs, two.inputs)
        assert torch.equal(one.targets, two.targets)


@splits
def test_another_seed_gives_another_split(kind):
    task = digits(split=kind)
    assert samples(task.client_data(0, 5, 3)) != samples(task.client_data(0, 5, 4))


def test_an_even_split_gives_parts_that_differ_by_one_at_most():
    """1438 = 3 * 480 - 2."""
    assert sorted(len(data.targets) for data in split(digits(split="even"), 3)) == [479, 479, 480]


def most_common_share(task):
    """Part of the clients' samples that are of the commonest class of each."""
    return np.mean([np.bincount(data.targets).max() / len(data.targets) for data in split(task, 5)])


def test_a_small_alpha_gives_each_client_few_classes():
    """Ten classes evenly: 0.1 each."""
    assert most_common_share(digits(alpha=0.05, samples_min=1)) > 0.4
    assert most_common_share(digits(alpha=1000.0)) < 0.15


def test_every_client_gets_the_fewest_samples_asked_for():
    assert min(len(data.targets) for data in split(digits(alpha=0.1, samples_min=40), 8)) >= 40


@splits
def test_more_clients_than_there_are_samples_for_are_refused(kind):
    with pytest.raises(ValueError, match=r"1438 training images, too few for 144 clients of at least 10; lower clients"):
        digits(split=kind).client_data(0, 144, 0)


def test_a_dirichlet_split_that_never_comes_is_refused():
    """Five equal parts of 1438 hold 287 or 288 each; Dirichlet(0.1) does not give that."""
    with pytest.raises(ValueError, match=r"no Dirichlet\(0\.1\) split .* at least 287 in 1000 draws; raise task\.alpha"):
        digits(alpha=0.1, samples_min=287).client_data(0, 5, 0)


def test_digits_are_images_of_one_channel_between_0_and_1():
    inputs, targets = digits().client_data(0, 5, 0)
    assert inputs.shape[1:] == (1, 8, 8)
    assert (inputs.dtype, targets.dtype) == (torch.float32, torch.int64)
    assert (inputs.min(), inputs.max()) == (0.0, 1.0)


def test_the_model_of_digits_gives_a_score_for_each_class():
    task = digits()
    assert task.model()(task.test_data().inputs[:3]).shape == (3, 10)


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    _load.cache_clear()
    with pytest.raises(ValueError, match=r"pip install 'asyncfeded\[digits\]'"):
        tasks.load_task({"name": "digits"}).test_data()
