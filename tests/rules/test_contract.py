"""What a rule may give back, and how one that does otherwise is told: rule, method, round and client."""

from typing import ClassVar

import numpy as np
import pytest
import torch

from asyncfeded import rules
from asyncfeded.rules import contract
from asyncfeded.rules.contract import RuleError, init, on_arrival, on_loss
from asyncfeded.rules.decision import Decision, Reply
from asyncfeded.rules.fedavg import FedAvg
from asyncfeded.testing import RuleTests
from asyncfeded.testing.rule_tests import measure, new_model
from asyncfeded.wire.server_ranks import ServerRankLostError

OUT = np.array([False, True, False, True])
FINE = Decision(np.float32(0.5), 1, (Reply(0, 3), Reply(np.int64(2), 1)))


class Mine:
    """A rule that gives back what it is told to, or raises it."""

    proximal: ClassVar[float] = 0.0

    def __init__(self, answer):
        self.answer = answer

    def init(self, model, epochs):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer

    def on_arrival(self, update, model, state):
        return self.init(model, None)

    def on_loss(self, client, model, state):
        return self.init(model, None)


def arrived(answer):
    model = new_model()
    return on_arrival(Mine(answer), 7, measure(model, 2, torch.ones(8)), model, {}, OUT)


def test_a_good_answer_passes():
    assert arrived(FINE) is FINE
    assert on_loss(Mine((Reply(0, 1),)), 1, new_model(), {}, OUT) == (Reply(0, 1),)
    state = {"K": np.ones(4), "v": torch.zeros(2)}
    assert init(Mine(state), new_model(), np.ones(4)) is state


def test_a_rule_whose_clients_do_not_wait_has_no_reply_for_a_lost_client():
    rule = rules.load_rule({"name": "fedbuff"})
    assert on_loss(rule, 1, new_model(), {}, OUT) == ()
    assert isinstance(FedAvg(), rules.Waits)


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (None, r"gave back None, expected Decision\(gamma, eta, replies\)"),
        ((0.0, 1.0, ()), r"gave back \(0.0, 1.0, \(\)\), expected Decision"),
        (Decision(None, 1.0, ()), "gave back Decision.*expected Decision"),
        (Decision(0.0, 1.0, Reply(0, 1)), r"gave back the replies .* expected a tuple of Reply\(client, epochs\)"),
        (Decision(0.0, 1.0, ((0, 1),)), r"gave back the replies \(\(0, 1\),\), expected a tuple of Reply"),
        (Decision(0.0, 1.0, (Reply(4, 1),)), "replies to client 4, which does not wait for a reply"),
        (Decision(0.0, 1.0, (Reply(1, 1),)), "replies to client 1, which does not wait"),
        (Decision(0.0, 1.0, (Reply(0, 1), Reply(0, 1))), "replies to client 0, which does not wait"),
        (
            Decision(0.0, 1.0, (Reply(0, 2.5),)),
            r"gave back Reply\(client=0, epochs=2.5, .*\), expected .* two whole numbers",
        ),
        (Decision(0.0, 1.0, (Reply(0, 0),)), "gives client 0 K = 0, expected 1 to 2147483647"),
        (Decision(0.0, 1.0, (Reply(0, 1, -0.5),)), "gives client 0 the learning rate -0.5, expected a number from 0"),
        (Decision(0.0, 1.0, (Reply(0, 1, float("nan")),)), "gives client 0 the learning rate nan"),
        (KeyError("no such layer"), r"raised KeyError: 'no such layer'\nTraceback .*\n(.*\n)+KeyError: 'no such layer'"),
    ],
)
def test_a_wrong_answer_is_told_with_round_and_client(answer, problem):
    with pytest.raises(RuleError, match=f"^rule Mine, on_arrival, round 7 of client 2: {problem}") as told:
        arrived(answer)
    assert "/rules/contract.py" not in str(told.value)  # none of our own frames


@pytest.mark.parametrize("method", ["init", "on_arrival", "on_loss"])
def test_a_server_rank_that_is_lost_while_a_rule_computes_is_no_fault_of_the_rule(method):
    """The distances of a slice are added up over the ranks of the server inside of a rule's methods."""
    rule, model = Mine(ServerRankLostError("rank 1 has died")), new_model()
    arguments = {
        "init": (rule, model, np.ones(4)),
        "on_arrival": (rule, 7, measure(model, 2, torch.ones(8)), model, {}, OUT),
        "on_loss": (rule, 1, model, {}, OUT),
    }
    with pytest.raises(ServerRankLostError, match=r"^rank 1 has died$"):
        getattr(contract, method)(*arguments[method])


def test_a_rule_that_replies_to_nobody_while_nobody_trains_is_told():
    """The run would wait for ever."""
    model, nobody = new_model(), np.zeros(4, bool)
    with pytest.raises(RuleError, match="replies to nobody, and no client trains"):
        on_arrival(Mine(Decision(0.0, 0.0, ())), 7, measure(model, 2, torch.ones(8)), model, {}, nobody)


def test_other_methods_are_told_too():
    with pytest.raises(RuleError, match=r"^rule Mine, on_loss of client 1: gave back the replies None, expected a tuple"):
        on_loss(Mine(None), 1, new_model(), {}, OUT)
    with pytest.raises(RuleError, match=r"^rule Mine, init: gave back None, expected a dict of arrays and tensors"):
        init(Mine(None), new_model(), np.ones(4))
    with pytest.raises(RuleError, match=r"^rule Mine, init: K must be equal$"):
        init(Mine(ValueError("K must be equal")), new_model(), np.ones(4))
    for state, what in (
        (torch.ones(2, requires_grad=True), "requires a gradient"),
        (torch.ones(2).bfloat16(), "is torch.bf"),
    ):
        with pytest.raises(RuleError, match=f"^rule Mine, init: v of its state {what}.*no checkpoint can hold it"):
            init(Mine({"v": state}), new_model(), np.ones(4))


def test_a_rule_that_reduces_a_vector_by_itself_is_found():
    """On a slice of the model its number is another one."""

    class OwnNorm(Mine):
        """Says as gamma a norm of the part that it sees."""

        def on_arrival(self, update, model, state):
            return Decision(float(update.weights.norm()), 1.0, (Reply(update.client, 1),))

    class Tests(RuleTests):
        def make_rule(self):
            return OwnNorm({})

    with pytest.raises(AssertionError):
        Tests().test_slices_of_the_model_lead_to_the_model_to_the_bit()
