"""The server refuses updates that cannot be merged, and goes on without clients that are lost."""

import math
from itertools import cycle

import pytest

from asyncfeded.config import Faults, Training
from asyncfeded.rules.asyncfeded import AsyncFedED
from asyncfeded.rules.fedavg import FedAvg
from asyncfeded.training.rounds import Workload
from asyncfeded.wire.messages import Joined, Lost, Refused
from training.servers import HAND_WORKED

# --- updates that are not finite


BAD = pytest.mark.parametrize("bad", [[math.nan, 0.0, 0.0], [0.0, -math.inf, 0.0], [0.0, 0.0, math.nan]])
"""The third element is a statistic, not a parameter."""


@BAD
def test_an_update_that_is_not_finite_leaves_the_model_as_it_is(bench, bad):
    done = bench([(0, [1.5, 2.0, 3.0]), (1, bad), (0, [3.0, 4.0, 3.0])], updates=2, statistics=1).run()
    assert done.wire.replies[3].weights.tolist() == done.wire.replies[2].weights.tolist() == [3.0, 4.0, 3.0]
    assert done.server.state.model.version == 2


@BAD
def test_an_update_that_is_not_finite_is_recorded_as_refused(bench, bad):
    done = bench([(0, [1.5, 2.0, 3.0]), (1, bad), (0, [3.0, 4.0, 3.0])], updates=2, statistics=1).run()
    row = done.rows[1]
    assert done.rows["accepted"].tolist() == [True, False, True]
    assert (row["client"], row["version"], row["tau"], row["eta"], row["next_epochs"]) == (1, 1, 1, 0.0, 2)
    assert math.isnan(row["gamma"])
    assert (done.server.state.refused, done.server.state.updates, done.server.state.counts.tolist()) == (1, 2, [2, 0])


@BAD
def test_a_refused_client_goes_on_from_the_model_of_now_with_its_k(bench, bad):
    done = bench([(0, [1.5, 2.0, 3.0]), (1, bad), (1, [3.0, 4.0, 3.0])], updates=2, statistics=1).run()
    again = done.wire.replies[3]
    assert (again.client, again.version, again.epochs) == (1, 1, 2)
    assert (done.rows["base_version"][2], done.rows["moved_norm"][2]) == (1, 0.0)


def test_a_refused_update_leaves_what_is_the_clients_own_as_it_was(bench):
    """The last element. Also where nothing but that is not finite."""
    script = [(0, [1.5, 2.0, 7.0]), (0, [math.nan, 0.0, 8.0]), (0, [3.0, 4.0, math.inf]), (0, [3.0, 4.0, 9.0])]
    done = bench(script, updates=2, own=1).run()
    assert [sent.weights.tolist() for sent in done.wire.replies] == 2 * [[0.0, 0.0, 0.0]] + 3 * [[3.0, 4.0, 7.0]]
    assert done.rows["accepted"].tolist() == [True, False, False, True]
    assert done.server.state.model.own(0).tolist() == [9.0]  # as a checkpoint has it


def test_a_client_that_is_refused_too_often_is_asked_no_more(bench):
    nan = 3 * [(1, [math.nan, 0.0])]
    done = bench([*nan, (0, [1.0, 1.0]), (0, [2.0, 2.0])], updates=2, max_refusals=3).run()
    assert [sent.client for sent in done.wire.replies] == [0, 1, 1, 1, 0]
    assert (done.server.state.refused, done.server.state.dropped.tolist(), done.outcome.failed) == (3, [False, True], False)
    assert done.said[-1] == "goes on without client 1: 3 refusals in a row (faults.max_refusals)"
    assert done.server.state.model.base[1].numel() == 0


def test_the_run_ends_when_all_clients_send_only_nan(bench):
    nan = [math.nan, math.nan]
    done = bench(cycle([(0, nan), (1, nan)]), updates=1).run()
    assert done.server.state.refused == 2 * Faults().max_refusals == 20
    assert done.outcome.failed
    assert done.outcome.reason == "no client is left (10 refusals in a row (faults.max_refusals))"
    assert "not finite (train loss" in done.said[0]
    assert "lower training.learning_rate" in done.said[0]


def test_a_dropped_client_that_sends_all_the_same_is_refused_and_buried_once(bench):
    nan = 2 * [(1, [math.nan, 0.0])]
    script = [*nan, Refused(1, "it is a second answer", True), Refused(1, "magic 0x1", False), (0, [1.0, 1.0])]
    done = bench(script, updates=1, max_refusals=2).run()
    assert (done.server.state.refused, done.server.state.updates) == (4, 1)
    assert [sent.client for sent in done.wire.replies] == [0, 1, 1]
    assert sum(said.startswith("goes on without client 1") for said in done.said) == 1
    assert done.said[-1] == "refused, client 1: magic 0x1"


def test_a_run_of_which_all_clients_were_dropped_before_ends_at_once(bench):
    one = bench([], updates=1)
    one.server.state.dropped[:] = True
    assert one.run().outcome.failed
    assert one.outcome.reason == "no client is left (all were refused too often before)"


def test_a_merged_update_in_between_starts_the_count_anew(bench):
    nan = 9 * [(1, [math.nan, 0.0])]
    done = bench([*nan, (1, [1.0, 1.0]), *nan, (1, [2.0, 2.0])], updates=2).run()
    assert (done.server.state.refused, done.server.state.updates) == (18, 2)


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({"max_gamma": 0.4}, "staleness gamma = 0.5, more than faults.max_gamma = 0.4"),
        ({"max_change": 9.5}, "||Delta|| = 10, more than faults.max_change = 9.5"),
    ],
)
def test_an_update_beyond_a_bound_is_refused_with_the_reason(bench, bounds, reason):
    """The second update of HAND_WORKED has gamma 0.5 and ||Delta|| = 10."""
    done = bench([*HAND_WORKED[:2], (1, [3.0, 5.0])], updates=2, **bounds).run()
    assert done.said == [f"refused, client 1: {reason}"]
    assert done.rows["accepted"].tolist() == [True, False, True]
    assert done.wire.replies[3].weights.tolist() == [3.0, 4.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("choice", ["refuse", "take"])
def test_an_update_whose_loss_is_not_finite_is_refused_or_taken_as_the_config_says(bench, bad, choice):
    script = [(0, [1.5, 2.0], {"train_loss": bad}), (0, [1.5, 2.0])]
    done = bench(script, updates=1, bad_loss=choice).run()
    if choice == "take":
        assert done.rows["accepted"].tolist() == [True]
        return
    assert done.rows["accepted"].tolist() == [False, True]
    words = f"train loss {bad}: lower training.learning_rate if that is usual, or set faults.bad_loss = take"
    assert done.said == [f"refused, client 0: {words}"]


def test_an_update_that_counts_other_samples_than_its_client_has_is_refused(bench):
    """Client 1 has 5 samples by 4, in 2 epochs 10 in 4 steps: it could weigh a thousand times more in a mean of all."""
    said = [(4, 10_000), (4, 9), (2, 10), (4, 10)]
    told = ({"steps": steps, "samples": samples} for steps, samples in said)
    script = [(0, [1.0, 1.0], {"steps": 2, "samples": 6}), *((1, [1.0, 1.0], fields) for fields in told)]
    workloads = [Workload(samples, 4, Training()) for samples in (3, 5)]
    done = bench(script, updates=2, workloads=workloads).run()
    assert done.rows["accepted"].tolist() == [True, False, False, False, True]
    assert done.said[0] == "refused, client 1: 10000 samples in 4 steps, but its data has 10 in 4 (K = 2)"
    assert done.server.state.steps.tolist() == [2, 4]


# --- what a client is told about its training


def test_a_client_is_told_its_steps_so_far_and_the_share_of_the_run_by_the_limit_that_is_nearest(bench):
    """4 updates are the limit; the 1e9 s are far. A refused update's steps do not count."""
    script = [(0, [1.0, 1.0]), (0, [float("nan"), 1.0]), (1, [1.0, 1.0]), (0, [1.0, 2.0]), (1, [2.0, 2.0])]
    done = bench(script, updates=4, seconds=1e9).run()
    told = [(sent.client, sent.steps, round(sent.share, 6)) for sent in done.wire.replies]
    first, _, other, second, _ = done.rows["steps"].tolist()
    assert told == [
        (0, 0, 0.0), (1, 0, 0.0), (0, first, 0.25), (0, first, 0.25), (1, other, 0.5), (0, first + second, 0.75),
    ]  # fmt: skip
    assert done.rows["share"].round(6).tolist() == [0.0, 0.25, 0.0, 0.25, 0.5]


def test_in_a_replay_a_client_is_told_the_share_that_the_record_has(bench):
    done = bench([(0, [1.0, 1.0]), (1, [1.0, 1.0])], updates=2)
    done.server.settings = done.server.settings._replace(share=lambda client, number: (client + 10 * number + 1) / 100)
    assert done.run().rows["share"].tolist() == [0.01, 0.02]
    assert [sent.share for sent in done.wire.replies] == [0.01, 0.02, 0.11]


class Rates(AsyncFedED):
    """Sends as learning rate what its client has measured."""

    def on_arrival(self, update, model, state):
        done = super().on_arrival(update, model, state)
        return done._replace(replies=tuple(reply._replace(learning_rate=update.measured) for reply in done.replies))


def test_a_rate_goes_with_the_reply_of_the_rule_and_again_with_an_order_that_is_repeated(bench):
    script = [
        (0, [1.0, 1.0], {"measured": 0.5}),
        (0, [float("nan"), 1.0], {"measured": 7.0}),
        (0, [1.0, 2.0], {"measured": 2.0}),
    ]
    done = bench(script, updates=2, rule=Rates()).run()
    assert [sent.learning_rate for sent in done.wire.replies] == [0.0, 0.0, 0.5, 0.5]
    assert done.rows["learning_rate"].tolist() == [0.0, 0.5, 0.5]
    assert done.rows["measured"].tolist() == [0.5, 7.0, 2.0]
    assert [reply.learning_rate for reply in done.server.state.withheld] == [2.0]


# --- what the wire did not take for an update, and clients that are lost


def test_a_refused_answer_is_counted_and_its_client_starts_anew(bench):
    done = bench([(0, [1.5, 2.0]), Refused(1, "it is of another length", True), (1, [3.0, 5.0])], updates=2).run()
    assert (done.server.state.refused, done.server.state.updates, len(done.rows)) == (1, 2, 2)
    assert (done.wire.replies[3].client, done.wire.replies[3].version) == (1, 1)
    assert done.said == ["refused, client 1: it is of another length"]


def test_what_answers_nothing_is_counted_and_answered_by_nothing(bench):
    script = [Refused(-1, "a second answer", True), Refused(1, "magic 0x1", False), (0, [1.5, 2.0])]
    done = bench(script, updates=1).run()
    assert (done.server.state.refused, len(done.wire.replies)) == (2, 2)
    assert done.said == ["refused: a second answer", "refused, client 1: magic 0x1"]


def test_the_run_goes_on_without_a_lost_client_and_frees_its_base(bench):
    done = bench([Lost("rank 2", (1,), "rank 2 was silent"), (0, [1.0, 1.0]), (0, [2.0, 2.0])], updates=2).run()
    assert done.server.state.counts.tolist() == [2, 0]
    assert done.server.state.model.base[1].numel() == 0
    assert not done.outcome.failed
    assert done.said[0] == "rank 2 is given up: rank 2 was silent"


def test_a_client_that_comes_back_starts_anew_from_the_model_of_now(bench):
    script = [Lost("rank 2", (1,), "silent"), (0, [1.5, 2.0]), Refused(1, "late", True), (1, [3.0, 5.0])]
    done = bench(script, updates=2).run()
    assert (done.wire.replies[3].client, done.wire.replies[3].weights.tolist()) == (1, [3.0, 4.0])
    assert done.server.state.counts.tolist() == [1, 1]
    assert done.said[-1] == "client 1 is back and starts anew"


def test_a_client_that_leaves_is_done_without_and_one_that_joins_starts_from_the_model_of_now(bench):
    script = [Lost("client 1", (1,), "it has left", left=True), (0, [1.5, 2.0]), Joined(1, "node2"), (1, [3.0, 5.0])]
    done = bench(script, updates=2, on_death="abort").run()
    assert (done.wire.replies[3].client, done.wire.replies[3].weights.tolist()) == (1, [3.0, 4.0])
    assert (done.server.state.counts.tolist(), done.server.state.lost.any()) == ([1, 1], False)
    assert done.said == ["goes on without client 1: it has left", "client 1 has joined: node2"]


def test_a_client_that_is_absent_at_the_start_gets_no_order_until_it_joins(bench):
    made = bench([(0, [1.5, 2.0]), Joined(1, "node2"), (1, [3.0, 5.0])], updates=2)
    made.server.state.lost[1] = True
    done = made.run()
    assert [reply.client for reply in done.wire.replies] == [0, 0, 1]
    assert [reply.round for reply in done.wire.replies] == [0, 1, 0]


def test_the_run_ends_when_the_last_client_is_lost(bench):
    done = bench([Lost("rank 2", (1,), "silent"), Lost("rank 1", (0,), "dead")], updates=2).run()
    assert done.outcome.failed
    assert done.outcome.reason == "no client is left (dead)"


def test_the_run_ends_with_the_first_loss_if_it_should(bench):
    done = bench([Lost("rank 1", (0,), "rank 1 has died")], updates=2, on_death="abort").run()
    assert done.outcome.failed
    assert done.outcome.reason == "a worker died (rank 1 has died; faults.on_death = abort)"


def test_a_worker_whose_clients_have_moved_ends_nothing(bench):
    done = bench([Lost("rank 1", (), "rank 1 has died"), (0, [1.0, 1.0])], updates=1, on_death="reassign").run()
    assert not done.outcome.failed
    assert done.said == ["rank 1 is given up: rank 1 has died; its clients move to other ranks"]


@pytest.mark.parametrize("late", [False, True])
def test_a_barrier_goes_on_without_a_lost_client(bench, late):
    """FedAvg: alone, client 0 sets x, the second time also while client 1 is back; when that has arrived, it waits."""
    script = [(0, [1.0, 2.0]), Lost("rank 2", (1,), "dead")]
    if late:
        script += [Refused(1, "late", True), (0, [3.0, 4.0]), (1, [5.0, 8.0])]
    else:
        script += [(0, [3.0, 4.0])]
    done = bench(script, updates=3 if late else 2, rule=FedAvg()).run()
    assert done.server.state.model.version == 2
    assert done.server.state.model.x.tolist() == [3.0, 4.0]
