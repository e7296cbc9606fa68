"""The server evaluates snapshots of the global model in its idle moments."""

import math
import time
from itertools import cycle, repeat
from types import SimpleNamespace

import pytest

from asyncfeded.training.server import DivergedError
from conftest import METRICS
from training.servers import FIRST, HAND_WORKED, flood


def test_evaluation_waits_for_an_idle_moment(bench):
    events = bench([*HAND_WORKED, *repeat(None, 4), (1, [9.0, 9.0])], updates=4).run().wire.events
    assert "batch" not in events[: events.index("take 0", events.index("take 1"))]
    assert events[-4:] == ["stop", "batch", "batch", "batch"]
    assert events[: events.index("stop")].count("batch") == 3


def test_an_average_is_tested_and_saved_in_place_of_the_newest_model_and_clients_get_that(bench):
    """a = 1. The versions are (3, 4), (9, 12) and (9, 12 + 2/21); they enter with weight 1, 2/3 and 2/4."""
    done = bench([*HAND_WORKED], updates=3, average=1.0).run()
    mean = (8.0, ((4 + 2 * 12) / 3 + 12 + 2 / 21) / 2)
    assert done.server.final.tolist() == pytest.approx(mean)
    assert done.outcome.score.values["loss"] == pytest.approx(2 * sum(mean) / 3)
    assert [sent.weights.tolist() for sent in done.wire.replies[2:]] == [[3.0, 4.0], [9.0, 12.0]]


def test_the_wire_is_asked_between_two_batches(bench):
    events = bench([FIRST, *repeat(None, 4), (0, [1.0, 1.0])], updates=2).run().wire.events
    assert events[5:12] == ["next", "next", "batch", "next", "batch", "next", "batch"]  # the first takes the snapshot


def test_an_update_that_waits_is_taken_between_two_batches(bench):
    script = [FIRST, None, None, (0, [1.0, 1.0]), None, None, (1, [1.0, 1.0])]
    events = bench(script, updates=3).run().wire.events
    assert [e for e in events if e == "batch" or e.startswith("take")][1:6] == [
        "batch",
        "take 0",
        "batch",
        "batch",
        "take 1",
    ]


def test_an_evaluation_is_of_the_model_at_its_start(bench):
    """An update comes between its first and second batch; the model evaluated is (-2, -2)."""
    done = bench([(1, [-1.0, -1.0]), None, None, (0, [1.0, 1.0]), None, None, (1, [1.0, 1.0])], updates=3).run()
    assert done.evaluations[0].item()[1:] == (1, 0.0, pytest.approx(-8 / 3))


def test_a_server_that_is_never_idle_evaluates_all_the_same(bench):
    """One batch after each update, and the snapshot after one: four updates an evaluation."""
    done = bench(flood(), updates=9, every_s=1e-9).run()
    assert done.evaluations["version"].tolist() == [1, 5, 9]
    assert "pause" not in done.wire.events


def test_a_server_that_is_never_idle_is_left_alone_until_an_evaluation_is_overdue(bench):
    done = bench(flood(), updates=9, every_s=1e3).run()
    assert done.evaluations["version"].tolist() == [9]


def test_a_model_that_has_not_changed_is_not_evaluated_again(bench):
    done = bench([FIRST, *repeat(None, 50), (0, [1.0, 1.0])], updates=2, every_s=1e-9).run()
    assert done.evaluations["version"].tolist() == [1, 2]


def test_the_untrained_model_is_not_evaluated(bench):
    events = bench([*repeat(None, 5), FIRST], updates=1).run().wire.events
    assert "batch" not in events[: events.index("stop")]


def test_a_model_that_has_changed_waits_until_its_evaluation_is_due(bench):
    done = bench(
        [FIRST, *repeat(None, 4), (0, [1.0, 1.0]), *repeat(None, 50), (0, [1.0, 1.0])], updates=3, every_s=1e3
    ).run()
    assert done.evaluations["version"].tolist() == [1, 3]


def test_an_evaluation_starts_only_where_all_before_it_took_their_share_or_less(bench):
    b = bench(cycle([(0, [1.0, 1.0]), None]), updates=200, every_s=1e-9, share=0.1)
    score, start, starts = b.evaluator._task.score, b.evaluator.start, []
    b.evaluator._task.score = lambda *args: time.sleep(0.001) or score(*args)
    b.evaluator.start = lambda *args: starts.append((b.server.state.evaluating_s, b.server.elapsed_s)) or start(*args)
    b.run()
    during = starts[:-1]  # the last is the final evaluation's
    assert all(spent <= 0.1 * elapsed for spent, elapsed in during), during
    assert during


def test_a_server_with_nothing_to_do_pauses(bench):
    events = bench([FIRST, *repeat(None, 6), (0, [1.0, 1.0])], updates=2).run().wire.events
    assert events.count("pause") == 2  # of 6 idle turns one takes the snapshot and three test a batch


def test_what_a_client_has_tested_is_told_in_every_so_many_th_of_its_rounds(bench):
    """Also that of an update that was not merged is not: its second one, of round 1, is late, and its third is refused."""
    updates = [(0, [1.0, 1.0], {"scores": (number,)}) for number in range(2)]
    updates += [(0, [math.nan, 1.0], {"scores": (2,)}), (0, [1.0, 1.0], {"scores": (3,)}), (0, [1.0, 1.0], {"scores": (4,)})]
    assert bench(updates, updates=4, client_rounds=2).run().tested == [(0, 0, (0,)), (0, 4, (4,))]
    assert bench(updates[:2], updates=2).run().tested == []


@pytest.fixture
def bad_score(bench):
    """A server whose evaluations give this loss and this accuracy."""

    def make(script, score, **settings):
        made = bench(script, **settings)
        loss, accuracy = score
        scores = {"loss": (loss, 1), "accuracy": (accuracy, 1)}
        made.evaluator._task = SimpleNamespace(metrics=METRICS.by_name, score=lambda *asked: scores)
        return made.run()

    return make


bad_scores = pytest.mark.parametrize("score", [(1.0, math.nan), (math.inf, 0.5)], ids=["accuracy", "loss"])


@bad_scores
@pytest.mark.parametrize(("script", "updates"), [([FIRST, *repeat(None, 4)], 2), ([FIRST], 1)], ids=["idle", "end"])
def test_an_evaluation_that_gives_no_number_ends_the_run(bad_score, score, script, updates):
    done = bad_score(script, score, updates=updates)
    assert done.outcome.failed
    assert done.outcome.reason.startswith("version 1 of the model has ")
    assert "or set faults.bad_loss = take" in done.outcome.reason
    assert len(done.evaluations) == 1


@bad_scores
def test_an_evaluation_that_gives_no_number_is_taken_where_the_config_says_so(bad_score, score):
    done = bad_score([FIRST, *repeat(None, 4), FIRST], score, updates=2, bad_loss="take")
    assert not done.outcome.failed
    assert done.evaluations["version"].tolist() == [1, 2]


def test_a_model_that_is_not_finite_ends_the_run_with_a_sentence(bench):
    """3e38 times the step size of 2 is beyond float32."""
    with pytest.raises(DivergedError, match=r"not finite after 1 updates: .* lower the rule's step size"):
        bench([(0, [3e38, 1.0])], updates=1).run()
