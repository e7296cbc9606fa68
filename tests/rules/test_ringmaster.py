"""Ringmaster throws away what is too stale, as worked out by hand."""

from asyncfeded import rules
from asyncfeded.rules.decision import Reply
from rules.models import arrive, start


def test_an_update_of_staleness_R_changes_nothing_and_makes_nobody_staler():
    """R = 2: of client 1, tau is 2 and nothing happens; it is replied to, and its next update is fresh."""
    rule = rules.load_rule({"name": "ringmaster", "R": 2})
    model, state = start(rule)
    for _ in range(2):
        assert arrive(rule, model, state, 0, [1.0, 0.0]).eta == 0.5
    assert arrive(rule, model, state, 1, [0.0, 100.0])[1:] == (0.0, (Reply(1, 2),))
    assert (model.version, model.x.tolist()) == (2, [1.0, 0.0])
    arrive(rule, model, state, 1, [0.0, 2.0])
    assert (model.version, model.x.tolist()) == (3, [1.0, 1.0])


def test_one_stale_step_is_within_R():
    rule = rules.load_rule({"name": "ringmaster", "R": 2, "eta": 0.25})
    model, state = start(rule)
    arrive(rule, model, state, 0, [4.0, 0.0])
    arrive(rule, model, state, 1, [0.0, 4.0])
    assert model.x.tolist() == [1.0, 1.0]
