"""Classification gives the mean loss to train on, and the summed loss and the hits to evaluate by."""

import numpy as np
import pytest
import torch

from asyncfeded.tasks.classification import Classification


def test_loss_is_the_mean_cross_entropy():
    """Scores (0, log 3) give the second class 3/4: -log 3/4 and, for the first, -log 1/4."""
    outputs = torch.tensor([[0.0, np.log(3.0)]]).repeat(2, 1)
    loss = Classification().loss(outputs, torch.tensor([1, 0]))
    assert loss.item() == pytest.approx((-np.log(0.75) - np.log(0.25)) / 2)


def test_evaluate_gives_summed_loss_correct_and_count():
    outputs = torch.tensor([[0.0, np.log(3.0)]]).repeat(3, 1)
    loss, correct, count = Classification().evaluate(outputs, torch.tensor([1, 0, 1]))
    assert loss == pytest.approx(-2 * np.log(0.75) - np.log(0.25))
    assert (correct, count) == (2, 3)
