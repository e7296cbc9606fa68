"""What a client that joins must have in common with the server."""

import json

import numpy as np
import pytest
import torch
from torch import nn

from asyncfeded.model.flat import ModuleState, digest_frozen
from asyncfeded.mpi.world import make_statement
from asyncfeded.run.terms import Offer, Terms, accept, kept


class Module(nn.Module):
    """One parameter that is trained and one that is frozen, a statistic, and a table that must be the server's."""

    def __init__(self, table=0.25, frozen=1.0):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.frozen = nn.Parameter(torch.full((2,), frozen), requires_grad=False)
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("mask", torch.tensor([[True, False], [False, True]]).T, persistent=False)
        self.register_buffer("table", torch.full((), table), persistent=False)


def offered(**fields):
    return Offer(make_statement(config=b"c" * 32, num_params=3), "abc 10 a.py\n", "p" * 8)._replace(**fields)


@pytest.fixture
def terms():
    state = ModuleState(Module())
    return Terms(offered(), ["mean"], [("m", (3,))], digest_frozen(state.frozen(["mean"])), kept(state, ["mean"]), 2)


def heard(words):
    """Words as they come out of a line."""
    return json.loads(json.dumps(words))


def test_a_client_that_agrees_gets_the_tables_of_the_server(terms):
    told = heard(terms.welcome(heard(offered().words())))
    module = Module(table=0.5)
    module.mask.zero_()
    state = ModuleState(module)
    assert accept(told, state) == (["mean"], [("m", (3,))])
    assert module.table.item() == 0.25
    assert module.mask.tolist() == [[True, False], [False, True]]
    assert told["threads"] == 2


@pytest.mark.parametrize(
    ("other", "sentence"),
    [
        (
            {"statement": make_statement(config=b"d" * 32, num_params=3)},
            "that joins on .* have different configs",
        ),
        ({"statement": make_statement(config=b"c" * 32, num_params=4)}, "have models of different size"),
        ({"statement": np.zeros(3, np.uint8)}, "speak different protocols; install the same asyncfeded"),
        ({"origin": "abd 10 a.py\n"}, "a.py: not the same as on the server"),
        ({"profiles": "q" * 8}, "the clients have other samples than on the server"),
    ],
)
def test_a_client_that_differs_is_told_what(terms, other, sentence):
    with pytest.raises(ValueError, match=sentence):
        terms.welcome(heard(offered(**other).words()))


def test_a_frozen_parameter_must_be_that_of_the_server(terms):
    with pytest.raises(ValueError, match=r"frozen.*: not the same as on the server"):
        accept(heard(terms.welcome(offered().words())), ModuleState(Module(frozen=2.0)))
