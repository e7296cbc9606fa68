"""Task synthetic draws its devices by the law of its paper, and refuses keys that do not fit."""

import re

import numpy as np
import pytest
import torch

from asyncfeded.seeds import Stream, numpy_rng
from tasks.data import samples, synthetic


def test_synthetic_follows_its_law_number_by_number():
    """The law written down again: counts, u and B of all devices from one stream, the rest from the device's own."""
    task = synthetic(alpha=0.5, beta=2.0, devices=3, data_seed=7)
    rng = numpy_rng(7, Stream.SPLIT)
    counts = np.floor(np.exp(4 + 2 * rng.standard_normal(3))).astype(int) + 50
    u, b = 0.5 * rng.standard_normal(3), 2.0 * rng.standard_normal(3)
    tests = []
    for k in range(3):
        rng = numpy_rng(7, Stream.SPLIT, k)
        v = b[k] + rng.standard_normal(60)
        weight, bias = u[k] + rng.standard_normal((60, 10)), u[k] + rng.standard_normal(10)
        x = v + rng.standard_normal((counts[k], 60)) * np.sqrt(np.arange(1, 61) ** -1.2)
        scores = np.exp(x @ weight + bias)
        y = np.argmax(scores / scores.sum(axis=1, keepdims=True), axis=1)
        train = int(np.floor(0.9 * counts[k] + 1e-9))
        data = task.client_data(k, 3, 0)
        np.testing.assert_allclose(data.inputs.numpy(), x[:train], rtol=1e-5, atol=1e-6)
        assert data.targets.tolist() == y[:train].tolist()
        tests.append((x[train:], y[train:]))
    test = task.test_data()
    np.testing.assert_allclose(test.inputs.numpy(), np.concatenate([x for x, _ in tests]), rtol=1e-5, atol=1e-6)
    assert test.targets.tolist() == np.concatenate([y for _, y in tests]).tolist()


def test_sample_counts_are_lognormal_above_50():
    """LogNormal(4, 2): half above e^4 = 54.6, 15.87 % above e^6 and below e^2, of 20,000 draws; none below 0.9 * 50."""
    sizes = synthetic(devices=20_000).sizes(20_000, 0)
    assert sizes.min() >= 45
    for z, share in ((0, 0.5), (1, 0.1587), (-1, 0.8413)):
        assert np.mean(sizes > 0.9 * (50 + np.exp(4 + 2 * z))) == pytest.approx(share, abs=0.015)


def test_features_have_the_variances_of_the_law():
    """Within a device j^-1.2 for feature j: 1 for the first, 60^-1.2 = 0.00735 for the last; 90,000 samples."""
    inputs, _ = synthetic(sizes_given=[100_000]).client_data(0, 1, 0)
    np.testing.assert_allclose(inputs.double().numpy().var(axis=0), np.arange(1, 61) ** -1.2, rtol=0.03)


@pytest.mark.parametrize("beta", [0.0, 3.0])
def test_devices_differ_by_beta(beta):
    """The mean of v_k over 60 features is N(B_k, 1/60), B_k being N(0, beta); within a device v_k has deviation 1."""
    task = synthetic(beta=beta, sizes_given=[400] * 300)
    means = np.stack([task.client_data(k, 300, 0).inputs.double().numpy().mean(axis=0) for k in range(300)])
    assert means.mean(axis=1).std() == pytest.approx(np.sqrt(beta**2 + 1 / 60), rel=0.15)
    assert means.std(axis=1).mean() == pytest.approx(1.0, rel=0.05)


def test_no_class_is_favoured_over_many_devices():
    """Each has a share of 1/10 by symmetry; one device alone has few classes."""
    task = synthetic(sizes_given=[200] * 500)
    shares = np.bincount(task.test_data().targets, minlength=10) / 10_000
    assert shares == pytest.approx(np.full(10, 0.1), abs=0.04)


def test_alpha_moves_all_classes_alike():
    """As the law has it: u_k adds u_k (sum x + 1) to every score, which changes no argmax."""
    one, two = (synthetic(alpha=alpha, devices=4).client_data(1, 4, 0) for alpha in (0.0, 2.0))
    assert torch.equal(one.inputs, two.inputs)
    assert torch.equal(one.targets, two.targets)


def test_a_device_is_drawn_without_the_samples_of_the_others():
    """The second would need 480 TB."""
    task = synthetic(sizes_given=[100, 10**12])
    alone = task.client_data(0, 2, 0)
    assert samples(alone) == samples(synthetic(sizes_given=[100, 20]).client_data(0, 2, 0))
    assert task.sizes(2, 0).tolist() == [90, 9 * 10**11]


def test_given_sizes_are_split_nine_to_one():
    """floor(0.9 * 10) = 9, floor(0.9 * 55) = 49, floor(0.9 * 2) = 1: the tests have 1 + 6 + 1."""
    task = synthetic(sizes_given=[10, 55, 2])
    assert task.sizes(3, 0).tolist() == [9, 49, 1]
    assert len(task.test_data().targets) == 8


def test_given_sizes_leave_models_and_centres_as_they_are():
    drawn = synthetic(devices=3)
    size = len(drawn.client_data(1, 3, 0).targets)
    given = synthetic(sizes_given=[7, 10_000, 7]).client_data(1, 3, 0)
    assert torch.equal(given.inputs[:size], drawn.client_data(1, 3, 0).inputs)


def test_a_cap_cuts_large_devices_only():
    free, capped = synthetic(devices=200).sizes(200, 0), synthetic(devices=200, samples_max=500).sizes(200, 0)
    assert free.max() > 450
    assert capped.tolist() == np.minimum(free, 450).tolist()


def test_devices_are_dealt_in_turn():
    task = synthetic(sizes_given=[10, 20, 30, 40, 50])
    assert task.sizes(2, 0).tolist() == [9 + 27 + 45, 18 + 36]
    one, two = (task.client_data(k, 5, 0).inputs for k in (1, 3))
    assert torch.equal(task.client_data(1, 2, 0).inputs, torch.cat([one, two]))
    with pytest.raises(ValueError, match=r"has 5 devices \(task\.devices = 0\), too few for 6 clients; lower clients to 5"):
        task.client_data(0, 6, 0)


def test_there_are_30_devices_where_nothing_is_said():
    assert len(synthetic().sizes(30, 0)) == 30


def test_the_data_seed_gives_the_data_and_the_seed_of_the_run_does_not():
    task = synthetic(devices=2, samples_max=100)
    assert samples(task.client_data(0, 2, 1)) == samples(task.client_data(0, 2, 2))
    assert samples(task.client_data(0, 2, 1)) != samples(
        synthetic(devices=2, samples_max=100, data_seed=1).client_data(0, 2, 1)
    )


@pytest.mark.parametrize(("keys", "shapes"), [
    ({}, [(10, 60), (10,)]),
    ({"model": "mlp", "hidden": 5}, [(5, 60), (5,), (10, 5), (10,)]),
])  # fmt: skip
def test_the_models_of_synthetic(keys, shapes):
    assert [tuple(p.shape) for p in synthetic(**keys).model().parameters()] == shapes


@pytest.mark.parametrize(("keys", "words"), [
    ({"sizes_given": [5, 1]}, "sizes_given holds 1, expected at least 2"),
    ({"samples_max": 1}, "samples_max = 1, expected at least 2"),
    ({"sizes_given": [5, 5], "devices": 3}, "sizes_given has 2 numbers, but devices = 3; leave devices out"),
    ({"alpha": -1.0}, "alpha = -1.0"),
    ({"beta": 1e300}, "beta = 1e+300"),
    ({"sizes_given": [10**30]}, f"sizes_given.0 = {10**30}"),
    ({"samples_max": 2**63}, f"samples_max = {2**63}"),
    ({"model": "cnn"}, "model = 'cnn'"),
    ({"architecture": "mlp"}, "unknown key architecture"),
])  # fmt: skip
def test_keys_of_synthetic_that_do_not_fit_are_refused(keys, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        synthetic(**keys)


def test_what_all_devices_have_is_drawn_once(monkeypatch):
    """Not for every client: 10,000 of them took 108 s."""
    drawn = []

    def note(*stream):
        drawn.append(stream)
        return numpy_rng(*stream)

    monkeypatch.setattr("asyncfeded.tasks.synthetic.numpy_rng", note)
    task = synthetic(devices=5, samples_max=60)
    task.sizes(5, 0)
    for client in range(5):
        task.client_data(client, 5, 0)
    task.test_data()
    assert drawn == [(0, Stream.SPLIT), *((0, Stream.SPLIT, device) for device in [*range(5), *range(5)])]
