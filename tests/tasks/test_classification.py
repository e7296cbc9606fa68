"""Classification gives the mean loss to train on, and the hits and the summed loss to test by."""

import numpy as np
import pytest
import torch
from torch import nn

from asyncfeded.tasks.classification import Classification, deal


def test_loss_is_the_mean_cross_entropy():
    """Scores (0, log 3) give the second class 3/4: -log 3/4 and, for the first, -log 1/4."""
    outputs = torch.tensor([[0.0, np.log(3.0)]]).repeat(2, 1)
    loss = Classification().loss(nn.Identity(), (outputs, torch.tensor([1, 0])))
    assert loss.item() == pytest.approx((-np.log(0.75) - np.log(0.25)) / 2)


def test_the_score_is_a_sum_and_a_count_for_each_metric():
    outputs = torch.tensor([[0.0, np.log(3.0)]]).repeat(3, 1)
    score = Classification().score(nn.Identity(), (outputs, torch.tensor([1, 0, 1])))
    assert score == {"accuracy": (2, 3), "loss": (pytest.approx(-2 * np.log(0.75) - np.log(0.25)), 3)}


def test_groups_are_dealt_in_turn():
    assert [list(deal("abcdefg", client, 3, "seven")) for client in range(3)] == [list("adg"), list("be"), list("cf")]


def test_a_client_takes_the_time_of_its_own_groups():
    """Ten of a million million."""
    assert len(deal(range(10**12), 3, 10**11, "many")) == 10


def test_fewer_groups_than_clients_are_refused():
    with pytest.raises(ValueError, match="2 roles, too few for 3 clients; lower clients to 2 or less"):
        deal("ab", 0, 3, "2 roles")
