"""The server measures, merges, replies and records, answers later where the rule does, and stops at a limit."""

import time
from itertools import repeat

import pytest

from asyncfeded.rules.contract import RuleError
from asyncfeded.rules.decision import Decision, Reply
from asyncfeded.wire.messages import HEAD
from training.servers import FIRST, HAND_WORKED, Barrier, flood


def test_every_client_is_first_sent_the_initial_model(hand_worked):
    first = [(sent.client, sent.version, sent.epochs, sent.weights.tolist()) for sent in hand_worked.wire.replies[:2]]
    assert first == [(0, 0, 2, [0.0, 0.0]), (1, 0, 2, [0.0, 0.0])]


def test_a_reply_carries_the_model_just_made_with_its_version_and_k(hand_worked):
    later = [(sent.client, sent.version, sent.epochs, sent.weights.tolist()) for sent in hand_worked.wire.replies[2:]]
    assert later == [(0, 1, 5, [3.0, 4.0]), (1, 2, 5, [9.0, 12.0])]


def test_gamma_eta_tau_and_k_are_the_papers(hand_worked):
    rows = hand_worked.rows
    assert rows["gamma"].tolist() == [0.0, 0.5, 10.0]
    assert rows["eta"].tolist() == [2.0, 1.0, 1 / 10.5]
    assert rows["tau"].tolist() == [0, 1, 1]
    assert rows["epochs"].tolist() == [2, 2, 5]
    assert rows["next_epochs"].tolist() == [5, 5, 0]  # the last is told to stop


def test_distances_count_from_the_model_that_the_client_was_sent(hand_worked):
    """From client 0's last upload, (1.5, 2), they would be 12.5 and 3.35."""
    assert hand_worked.rows["moved_norm"].tolist() == [0.0, 5.0, 10.0]
    assert hand_worked.rows["change_norm"].tolist() == [2.5, 10.0, 1.0]


def test_the_final_model_is_the_hand_worked_one(hand_worked):
    assert hand_worked.server.state.model.x.tolist() == pytest.approx([9.0, 12 + 2 / 21], rel=1e-6)


def test_updates_are_merged_in_the_order_of_their_arrival(bench):
    order = [1, 0, 1, 1, 0]
    done = bench([(client, [1.0, 1.0]) for client in order], updates=5).run()
    assert done.rows["client"].tolist() == order
    assert done.rows["version"].tolist() == [1, 2, 3, 4, 5]


def test_a_row_holds_what_the_arrival_said(bench):
    b = bench(HAND_WORKED, updates=3)
    arrivals, take = [], b.wire.next
    b.wire.next = lambda: arrivals.append(take()) or arrivals[-1]
    b.run()
    for field in ("client", "base_version", "epochs", "samples", "steps", "train_loss", "compute_s", "wait_s"):
        assert b.rows[field].tolist() == [getattr(arrival, field) for arrival in arrivals], field


def test_a_row_counts_the_bytes_of_the_update_and_of_its_reply(hand_worked):
    """A message has a header and 2 weights of 4 bytes; the last update gets no reply."""
    message = HEAD + 2 * 4
    assert hand_worked.rows["bytes"].tolist() == [2 * message, 2 * message, message]


def test_rows_are_in_order_of_time_and_within_the_run(hand_worked):
    times = hand_worked.rows["time_s"].tolist()
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] <= hand_worked.outcome.seconds


def test_counts_and_epochs_are_by_client(hand_worked):
    assert hand_worked.server.state.counts.tolist() == [2, 1]
    assert hand_worked.server.state.epochs.tolist() == [5, 5]  # sent last; the K of 1 was not sent


def test_recent_holds_gamma_and_eta(hand_worked):
    assert list(hand_worked.server.recent) == [(0.0, 2.0), (0.5, 1.0), (10.0, 1 / 10.5)]


def test_busy_time_is_the_processor_time_of_the_updates(bench):
    """10 ms of work in each of two updates, and 20 ms in which another process might have had the core."""

    class Slow(Barrier):
        def on_arrival(self, *args):
            until = time.thread_time() + 0.01
            while time.thread_time() < until:
                pass
            time.sleep(0.02)
            return super().on_arrival(*args)

    done = bench([None, (0, [1.0, 1.0]), None, (1, [1.0, 1.0])], updates=2, rule=Slow()).run()
    assert (done.rows["merge_s"] >= 0.03).all()
    assert (done.rows["service_s"] >= done.rows["measure_s"] + done.rows["merge_s"] - 1e-6).all()
    assert 0.02 <= done.server.state.busy_s <= done.outcome.seconds - 0.04


def test_evaluating_time_is_that_of_the_evaluation(bench):
    b = bench([FIRST, *repeat(None, 4), (0, [1.0, 1.0])], updates=2)
    score = b.evaluator._task.score
    b.evaluator._task.score = lambda *args: time.sleep(0.02) or score(*args)
    b.run()
    assert 0.06 <= b.server.state.evaluating_s <= b.outcome.seconds


def test_the_view_is_called_in_every_turn(bench):
    b = bench([None, *HAND_WORKED, None], updates=3).run()
    assert b.ticks - 2 == b.wire.events.count("next") == 4  # and once more at the start and at the end


@pytest.mark.parametrize("idle", [True, False])
def test_the_record_is_written_while_the_run_goes_on(bench, idle):
    """So that a run that is killed keeps all but its last seconds."""
    b = bench([*HAND_WORKED, *repeat(None, 6 * idle), *HAND_WORKED[1:]], updates=5)
    b.record.FLUSH_S = 0.0
    write, written = b.record.updates.write, []
    b.record.updates.write = lambda: written.append(b.server.state.updates) or write()
    b.run()
    assert written[0] < 5  # 5: when the record is closed


# --- limits


def test_a_limit_of_updates_is_met_exactly(bench):
    done = bench(flood(), updates=7).run()
    assert done.server.state.updates == len(done.rows) == done.server.state.model.version == 7
    assert done.outcome.reason == "7 updates were merged (limits.updates)"


def test_a_limit_of_seconds_stops(bench):
    done = bench(repeat(None), seconds=0.05).run()
    assert done.outcome.seconds >= 0.05
    assert done.outcome.reason == "0.05 s have passed (limits.seconds)"


def test_a_target_stops_when_an_evaluation_reaches_it(bench):
    """At (-2, -2) no output is above 0; gamma 0.2, eta 1 / 0.7 and Delta (10, 10) make all so."""
    done = bench([(1, [-1.0, -1.0]), *repeat(None, 5), (0, [10.0, 10.0]), *repeat(None, 4)], target=0.9, every_s=1e-9).run()
    assert done.evaluations["accuracy"].tolist() == [0.0, 1.0]
    assert done.outcome.reason == "accuracy 1.0000 was reached (limits.target = 0.9)"


def test_a_target_of_a_metric_whose_smallest_value_is_the_best_is_reached_from_above(bench):
    """The mean output is (8/3) / 2 after the first update, and then -8/3."""
    script = [(1, [0.5, 0.5]), *repeat(None, 5), (0, [-10.0, -10.0]), *repeat(None, 4)]
    done = bench(script, target=-2.5, goal="loss", every_s=1e-9).run()
    assert len(done.evaluations) == 2
    assert done.evaluations["loss"][0] > 0
    assert done.outcome.reason.startswith("loss -")
    assert done.outcome.reason.endswith(" was reached (limits.target = -2.5)")


def test_the_first_limit_reached_counts(bench):
    assert "limits.updates" in bench(flood(), updates=3, seconds=1e6, target=1.0).run().outcome.reason


def test_at_the_end_clients_are_stopped_instead_of_answered(bench):
    done = bench(flood(), updates=3).run()
    assert done.wire.events[done.wire.events.index("stop") - 1] == "take 0"
    assert done.outcome.discarded == 1  # client 1's, which is under way


def test_the_outcome_scores_the_final_model(bench):
    """(2, 2) gives outputs 2, 2 and 4."""
    done = bench([(0, [1.0, 1.0])], updates=1).run()
    assert done.outcome.score == (1, {"accuracy": 1.0, "loss": pytest.approx(8 / 3)})
    assert done.evaluations["version"].tolist() == [1]


def test_clients_are_stopped_before_the_final_evaluation(bench):
    events = bench([(0, [1.0, 1.0])], updates=1).run().wire.events
    assert events[-4:] == ["stop", "batch", "batch", "batch"]


def test_a_final_model_that_has_its_score_is_not_evaluated_again(bench):
    done = bench([(1, [-1.0, -1.0]), *repeat(None, 5), (0, [10.0, 10.0]), *repeat(None, 4)], target=0.9, every_s=1e-9).run()
    assert done.evaluations["version"].tolist() == [1, 2]
    assert done.wire.events[-1] == "stop"


# --- rules that answer later


def test_a_rule_may_keep_clients_waiting_until_all_have_arrived(bench):
    """Means: of (1, 0) and (0, 1), then of (3, 1) and (1, 3)."""
    script = [(1, [0.0, 1.0]), (0, [1.0, 0.0]), (0, [3.0, 1.0]), (1, [1.0, 3.0]), (1, [0.0, 0.0])]
    done = bench(script, updates=5, rule=Barrier()).run()
    later = [(sent.client, sent.version, sent.epochs, sent.weights.tolist()) for sent in done.wire.replies[2:]]
    assert later == [(0, 1, 7, [0.5, 0.5]), (1, 1, 7, [0.5, 0.5]), (0, 2, 7, [2.0, 2.0]), (1, 2, 7, [2.0, 2.0])]


def test_a_rule_sees_nothing_of_a_clients_own_which_waits_with_the_client(bench):
    """The last element. A message has a header."""
    script = [(1, [0.0, 1.0, 5.0]), (0, [1.0, 0.0, 6.0]), (0, [0.0, 0.0, 0.0])]
    done = bench(script, updates=3, rule=Barrier(), own=1).run()
    later = [(sent.client, sent.weights.tolist()) for sent in done.wire.replies[2:]]
    assert later == [(0, [0.5, 0.5, 6.0]), (1, [0.5, 0.5, 5.0])]
    message = HEAD + 3 * 4
    assert done.rows["bytes"].tolist() == [message, 3 * message, message]


def test_an_update_without_an_answer_is_recorded_so(bench):
    done = bench([(1, [0.0, 1.0]), (0, [1.0, 0.0]), (0, [3.0, 1.0])], updates=3, rule=Barrier()).run()
    assert done.rows["next_epochs"].tolist() == [0, 7, 0]
    assert done.rows["version"].tolist() == [0, 1, 1]
    message = HEAD + 2 * 4
    assert done.rows["bytes"].tolist() == [message, 3 * message, message]


# --- the fake wire itself: a server that breaks the contract must not pass


def test_the_fake_notices_a_reply_that_is_written_too_early(bench):
    class Rude(Barrier):
        def on_arrival(self, update, model, state):
            model.base[1 - update.client].fill_(1.0)
            return super().on_arrival(update, model, state)

    with pytest.raises(AssertionError, match="the reply to client 1 was written while it was out"):
        bench([(0, [1.0, 1.0]), (1, [1.0, 1.0])], updates=2, rule=Rude()).run()


def test_the_fake_notices_an_update_that_is_not_released(bench):
    b = bench([(0, [1.0, 1.0]), (1, [1.0, 1.0])], updates=2)
    b.wire.release = lambda arrival: None
    with pytest.raises(AssertionError, match="the update of client 0 was not released"):
        b.run()


def test_a_rule_that_answers_a_client_twice_is_told(bench):
    class Twice(Barrier):
        def on_arrival(self, update, model, state):
            return Decision(0.0, 0.0, (Reply(update.client, 1), Reply(update.client, 1)))

    with pytest.raises(RuleError, match="rule Twice, on_arrival, round 0 of client 0: replies to client 0, which does not"):
        bench([(0, [1.0, 1.0]), (1, [1.0, 1.0])], updates=2, rule=Twice()).run()
