"""The server's loop, without MPI: a script of arrivals goes in, replies and a record come out.

The model has two parameters and starts at (0, 0); the test data is three inputs in three batches, with outputs a, b and
a + b of a model (a, b), whose mean is the loss and whose share above 0 is the accuracy.
"""

import math
import time
from itertools import cycle, repeat

import numpy as np
import pytest
import torch
from torch import nn

from asyncfeded.config import Evaluation, Faults, Limits
from asyncfeded.model.flat import FlatModel
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules.asyncfeded import AsyncFedED
from asyncfeded.rules.decision import Decision, Reply
from asyncfeded.rules.fedavg import FedAvg
from asyncfeded.store import record
from asyncfeded.tasks.classification import Data
from asyncfeded.training import server
from asyncfeded.training.evaluation import Evaluator
from asyncfeded.training.heterogeneity import PROFILE
from asyncfeded.wire.messages import Lost, Refused
from conftest import FakeWire, places


class Toy:
    """A task of three test inputs."""

    def test_data(self):
        return Data(torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]), torch.zeros(3, dtype=torch.int64))

    def evaluate(self, outputs, targets):
        return outputs.sum().item(), int((outputs > 0).sum()), len(targets)


class Barrier:
    """A rule that answers nobody until all clients have arrived: their mean is the next model."""

    def init(self, model, epochs):
        return {"sum": np.zeros(2, np.float32), "arrived": np.zeros(len(epochs), bool)}

    def on_arrival(self, update, model, state):
        state["sum"] += update.weights.numpy()
        state["arrived"][update.client] = True
        if not state["arrived"].all():
            return Decision(0.0, 0.0, ())
        clients = len(state["arrived"])
        model.x.copy_(torch.from_numpy(state["sum"] / clients))
        model.version += 1
        state["sum"][:], state["arrived"][:] = 0, False
        return Decision(0.0, 1.0, tuple(Reply(client, 7) for client in range(clients)))


class Bench:
    """A server with all that it needs, two clients, K = 2 at first; `run` trains."""

    def __init__(
        self,
        folder,
        script,
        *,
        updates=0,
        seconds=0.0,
        accuracy=0.0,
        every_s=1e3,
        share=1.0,
        rule=None,
        statistics=0,
        **faults,
    ):
        module = nn.Linear(2, 1, bias=False)
        if statistics:
            module.register_buffer("statistics", torch.zeros(statistics))
        flat = FlatModel(module)
        flat.buffer.zero_()
        rule = rule or AsyncFedED(**{"lambda": 1.0}, epsilon=0.5, gamma_bar=3.0, kappa=1.0)
        model = GlobalModel(flat.buffer, flat.layout, 2)
        self.wire = FakeWire(script)
        self.evaluator = Evaluator(Toy(), flat, batch_size=1)
        self.record = record.Record(folder / "record.h5", "", places("here"), np.zeros(2, PROFILE))
        self.ticks, self.said = 0, []
        self.server = server.Server(
            wire=self.wire,
            rule=rule,
            state=rule.init(model, np.array([2, 2])),
            model=model,
            evaluator=self.evaluator,
            record=self.record,
            limits=Limits(updates=updates, seconds=seconds, accuracy=accuracy),
            epochs=np.array([2, 2]),
            evaluation=Evaluation(every_s=every_s, share=share),
            in_idle_moments=True,
            tick=self._tick,
            faults=Faults(**faults),
            say=self.said.append,
        )
        self._folder = folder
        step = self.evaluator.step
        self.evaluator.step = lambda: self.wire.events.append("batch") or step()

    def _tick(self, server):
        assert server is self.server
        self.ticks += 1

    def run(self):
        self.outcome = self.server.run()
        assert self.wire.events.count("stop") == 1
        self.record.close()
        self.rows, self.evaluations, _ = record.read_record(self._folder)
        return self


@pytest.fixture
def bench(tmp_path):
    """`bench(script, ...)`: a Bench that has not run."""
    made = []
    yield lambda *args, **kwargs: made.append(Bench(tmp_path, *args, **kwargs)) or made[-1]
    for one in made:
        one.record.close()


FIRST = (1, [1.0, 1.0])
"""An update before an evaluation: an untrained model is not evaluated."""


def flood():
    """Updates from both clients in turn, without end or pause."""
    return cycle([(0, [1.0, 0.0]), (1, [0.0, 1.0])])


HAND_WORKED = [(0, [1.5, 2.0]), (1, [6.0, 8.0]), (0, [3.0, 5.0])]
"""lambda = 1, epsilon = 0.5, gamma_bar = 3, kappa = 1, K = 2 at first, halves rounded up:

client 0 from (0, 0): moved 0, change 2.5, gamma 0, eta 1/0.5 = 2; x = (3, 4); K = 2 + E[3] = 5
client 1 from (0, 0): moved 5, change 10, gamma 0.5, eta 1/1 = 1; x = (9, 12); K = 2 + E[2.5] = 5
client 0 from (3, 4): moved |(6, 8)| = 10, change 1, gamma 10, eta 1/10.5; x = (9, 12 + 2/21); K = 5 + E[-7] = 1, the least
"""


@pytest.fixture
def hand_worked(bench):
    return bench(HAND_WORKED, updates=3).run()


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
    assert hand_worked.server.model.x.tolist() == pytest.approx([9.0, 12 + 2 / 21], rel=1e-6)


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
    """A message has a header of 64 bytes and 2 weights of 4; the last update gets no reply."""
    assert hand_worked.rows["bytes"].tolist() == [144, 144, 72]


def test_rows_are_in_order_of_time_and_within_the_run(hand_worked):
    times = hand_worked.rows["time_s"].tolist()
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] <= hand_worked.outcome.seconds


def test_counts_and_epochs_are_by_client(hand_worked):
    assert hand_worked.server.counts.tolist() == [2, 1]
    assert hand_worked.server.epochs.tolist() == [5, 5]  # sent last; the K of 1 was not sent


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
    assert (done.rows["service_s"] >= 0.03).all()
    assert 0.02 <= done.server.busy_s <= done.outcome.seconds - 0.04


def test_evaluating_time_is_that_of_the_evaluation(bench):
    b = bench([FIRST, *repeat(None, 4), (0, [1.0, 1.0])], updates=2)
    evaluate = b.evaluator._task.evaluate
    b.evaluator._task.evaluate = lambda *args: time.sleep(0.02) or evaluate(*args)
    b.run()
    assert 0.06 <= b.server.evaluating_s <= b.outcome.seconds


def test_the_view_is_called_in_every_turn(bench):
    b = bench([None, *HAND_WORKED, None], updates=3).run()
    assert b.ticks - 1 == b.wire.events.count("next") == 4  # and once more at the end


@pytest.mark.parametrize("idle", [True, False])
def test_the_record_is_written_while_the_run_goes_on(bench, idle):
    """So that a run that is killed keeps all but its last seconds."""
    b = bench([*HAND_WORKED, *repeat(None, 6 * idle), *HAND_WORKED[1:]], updates=5)
    b.record.FLUSH_S = 0.0
    write, written = b.record.updates.write, []
    b.record.updates.write = lambda: written.append(b.server.updates) or write()
    b.run()
    assert written[0] < 5  # 5: when the record is closed


# Updates that are not finite


BAD = pytest.mark.parametrize("bad", [[math.nan, 0.0, 0.0], [0.0, -math.inf, 0.0], [0.0, 0.0, math.nan]])
"""The third element is a statistic, not a parameter."""


@BAD
def test_an_update_that_is_not_finite_leaves_the_model_as_it_is(bench, bad):
    done = bench([(0, [1.5, 2.0, 3.0]), (1, bad), (0, [3.0, 4.0, 3.0])], updates=2, statistics=1).run()
    assert done.wire.replies[3].weights.tolist() == done.wire.replies[2].weights.tolist() == [3.0, 4.0, 3.0]
    assert done.server.model.version == 2


@BAD
def test_an_update_that_is_not_finite_is_recorded_as_refused(bench, bad):
    done = bench([(0, [1.5, 2.0, 3.0]), (1, bad), (0, [3.0, 4.0, 3.0])], updates=2, statistics=1).run()
    row = done.rows[1]
    assert done.rows["accepted"].tolist() == [True, False, True]
    assert (row["client"], row["version"], row["tau"], row["eta"], row["next_epochs"]) == (1, 1, 1, 0.0, 2)
    assert math.isnan(row["gamma"])
    assert (done.server.refused, done.server.updates, done.server.counts.tolist()) == (1, 2, [2, 0])


@BAD
def test_a_refused_client_goes_on_from_the_model_of_now_with_its_k(bench, bad):
    done = bench([(0, [1.5, 2.0, 3.0]), (1, bad), (1, [3.0, 4.0, 3.0])], updates=2, statistics=1).run()
    again = done.wire.replies[3]
    assert (again.client, again.version, again.epochs) == (1, 1, 2)
    assert (done.rows["base_version"][2], done.rows["moved_norm"][2]) == (1, 0.0)


def test_a_client_that_is_refused_too_often_is_asked_no_more(bench):
    nan = 3 * [(1, [math.nan, 0.0])]
    done = bench([*nan, (0, [1.0, 1.0]), (0, [2.0, 2.0])], updates=2, max_refusals=3).run()
    assert [sent.client for sent in done.wire.replies] == [0, 1, 1, 1, 0]
    assert (done.server.refused, done.server.dropped.tolist(), done.outcome.failed) == (3, [False, True], False)
    assert done.said[-1] == "goes on without client 1: 3 refusals in a row (faults.max_refusals)"
    assert done.server.model.base[1].numel() == 0


def test_the_run_ends_when_all_clients_send_only_nan(bench):
    nan = [math.nan, math.nan]
    done = bench(cycle([(0, nan), (1, nan)]), updates=1).run()
    assert done.server.refused == 2 * Faults().max_refusals == 20
    assert done.outcome.failed
    assert done.outcome.reason == "no client is left (10 refusals in a row (faults.max_refusals))"
    assert "not finite (train loss" in done.said[0]
    assert "lower training.learning_rate" in done.said[0]


def test_a_dropped_client_that_sends_all_the_same_is_refused_and_buried_once(bench):
    nan = 2 * [(1, [math.nan, 0.0])]
    script = [*nan, Refused(1, "it is a second answer", True), Refused(1, "magic 0x1", False), (0, [1.0, 1.0])]
    done = bench(script, updates=1, max_refusals=2).run()
    assert (done.server.refused, done.server.updates) == (4, 1)
    assert [sent.client for sent in done.wire.replies] == [0, 1, 1]
    assert sum(said.startswith("goes on without client 1") for said in done.said) == 1
    assert done.said[-1] == "refused, client 1: magic 0x1"


def test_a_run_of_which_all_clients_were_dropped_before_ends_at_once(bench):
    one = bench([], updates=1)
    one.server.dropped[:] = True
    assert one.run().outcome.failed
    assert one.outcome.reason == "no client is left (all were refused too often before)"


def test_a_merged_update_in_between_starts_the_count_anew(bench):
    nan = 9 * [(1, [math.nan, 0.0])]
    done = bench([*nan, (1, [1.0, 1.0]), *nan, (1, [2.0, 2.0])], updates=2).run()
    assert (done.server.refused, done.server.updates) == (18, 2)


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


# What the wire did not take for an update, and clients that are lost


def test_a_refused_answer_is_counted_and_its_client_starts_anew(bench):
    done = bench([(0, [1.5, 2.0]), Refused(1, "it is of another length", True), (1, [3.0, 5.0])], updates=2).run()
    assert (done.server.refused, done.server.updates, len(done.rows)) == (1, 2, 2)
    assert (done.wire.replies[3].client, done.wire.replies[3].version) == (1, 1)
    assert done.said == ["refused, client 1: it is of another length"]


def test_what_answers_nothing_is_counted_and_answered_by_nothing(bench):
    script = [Refused(-1, "a second answer", True), Refused(1, "magic 0x1", False), (0, [1.5, 2.0])]
    done = bench(script, updates=1).run()
    assert (done.server.refused, len(done.wire.replies)) == (2, 2)
    assert done.said == ["refused: a second answer", "refused, client 1: magic 0x1"]


def test_the_run_goes_on_without_a_lost_client_and_frees_its_base(bench):
    done = bench([Lost(1, (1,), "rank 2 was silent"), (0, [1.0, 1.0]), (0, [2.0, 2.0])], updates=2).run()
    assert done.server.counts.tolist() == [2, 0]
    assert done.server.model.base[1].numel() == 0
    assert not done.outcome.failed
    assert done.said[0] == "rank 2 is given up: rank 2 was silent"


def test_a_client_that_comes_back_starts_anew_from_the_model_of_now(bench):
    script = [Lost(1, (1,), "silent"), (0, [1.5, 2.0]), Refused(1, "late", True), (1, [3.0, 5.0])]
    done = bench(script, updates=2).run()
    assert (done.wire.replies[3].client, done.wire.replies[3].weights.tolist()) == (1, [3.0, 4.0])
    assert done.server.counts.tolist() == [1, 1]
    assert done.said[-1] == "client 1 is back and starts anew"


def test_the_run_ends_when_the_last_client_is_lost(bench):
    done = bench([Lost(1, (1,), "silent"), Lost(0, (0,), "dead")], updates=2).run()
    assert done.outcome.failed
    assert done.outcome.reason == "no client is left (dead)"


def test_the_run_ends_with_the_first_loss_if_it_should(bench):
    done = bench([Lost(0, (0,), "rank 1 has died")], updates=2, on_death="abort").run()
    assert done.outcome.failed
    assert done.outcome.reason == "a worker died (rank 1 has died; faults.on_death = abort)"


def test_a_worker_whose_clients_have_moved_ends_nothing(bench):
    done = bench([Lost(0, (), "rank 1 has died"), (0, [1.0, 1.0])], updates=1, on_death="reassign").run()
    assert not done.outcome.failed
    assert done.said == ["rank 1 is given up: rank 1 has died; its clients move to other ranks"]


@pytest.mark.parametrize("late", [False, True])
def test_a_barrier_goes_on_without_a_lost_client(bench, late):
    """FedAvg: alone, client 0 sets x, the second time also while client 1 is back; when that has arrived, it waits."""
    script = [(0, [1.0, 2.0]), Lost(1, (1,), "dead")]
    if late:
        script += [Refused(1, "late", True), (0, [3.0, 4.0]), (1, [5.0, 8.0])]
    else:
        script += [(0, [3.0, 4.0])]
    done = bench(script, updates=3 if late else 2, rule=FedAvg()).run()
    assert done.server.model.version == 2
    assert done.server.model.x.tolist() == [3.0, 4.0]


# Limits


def test_a_limit_of_updates_is_met_exactly(bench):
    done = bench(flood(), updates=7).run()
    assert done.server.updates == len(done.rows) == done.server.model.version == 7
    assert done.outcome.reason == "7 updates were merged (limits.updates)"


def test_a_limit_of_seconds_stops(bench):
    done = bench(repeat(None), seconds=0.05).run()
    assert done.outcome.seconds >= 0.05
    assert done.outcome.reason == "0.05 s have passed (limits.seconds)"


def test_a_limit_of_accuracy_stops_when_an_evaluation_reaches_it(bench):
    """At (-2, -2) no output is above 0; gamma 0.2, eta 1 / 0.7 and Delta (10, 10) make all so."""
    done = bench(
        [(1, [-1.0, -1.0]), *repeat(None, 5), (0, [10.0, 10.0]), *repeat(None, 4)], accuracy=0.9, every_s=1e-9
    ).run()
    assert done.evaluations["accuracy"].tolist() == [0.0, 1.0]
    assert done.outcome.reason == "an accuracy of 1.0000 was reached (limits.accuracy = 0.9)"


def test_the_first_limit_reached_counts(bench):
    assert "limits.updates" in bench(flood(), updates=3, seconds=1e6, accuracy=1.0).run().outcome.reason


def test_at_the_end_clients_are_stopped_instead_of_answered(bench):
    done = bench(flood(), updates=3).run()
    assert done.wire.events[done.wire.events.index("stop") - 1] == "take 0"
    assert done.outcome.discarded == 1  # client 1's, which is under way


def test_the_outcome_scores_the_final_model(bench):
    """(2, 2) gives outputs 2, 2 and 4."""
    done = bench([(0, [1.0, 1.0])], updates=1).run()
    assert done.outcome.score == (1, 1.0, pytest.approx(8 / 3))
    assert done.evaluations["version"].tolist() == [1]


def test_clients_are_stopped_before_the_final_evaluation(bench):
    events = bench([(0, [1.0, 1.0])], updates=1).run().wire.events
    assert events[-4:] == ["stop", "batch", "batch", "batch"]


def test_a_final_model_that_has_its_score_is_not_evaluated_again(bench):
    done = bench(
        [(1, [-1.0, -1.0]), *repeat(None, 5), (0, [10.0, 10.0]), *repeat(None, 4)], accuracy=0.9, every_s=1e-9
    ).run()
    assert done.evaluations["version"].tolist() == [1, 2]
    assert done.wire.events[-1] == "stop"


# Evaluation


def test_evaluation_waits_for_an_idle_moment(bench):
    events = bench([*HAND_WORKED, *repeat(None, 4), (1, [9.0, 9.0])], updates=4).run().wire.events
    assert "batch" not in events[: events.index("take 0", events.index("take 1"))]
    assert events[-4:] == ["stop", "batch", "batch", "batch"]
    assert events[: events.index("stop")].count("batch") == 3


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
    evaluate, start, starts = b.evaluator._task.evaluate, b.evaluator.start, []
    b.evaluator._task.evaluate = lambda *args: time.sleep(0.001) or evaluate(*args)
    b.evaluator.start = lambda *args: starts.append((b.server.evaluating_s, b.server.elapsed_s)) or start(*args)
    b.run()
    during = starts[:-1]  # the last is the final evaluation's
    assert all(spent <= 0.1 * elapsed for spent, elapsed in during), during
    assert during


def test_a_server_with_nothing_to_do_pauses(bench):
    events = bench([FIRST, *repeat(None, 6), (0, [1.0, 1.0])], updates=2).run().wire.events
    assert events.count("pause") == 2  # of 6 idle turns one takes the snapshot and three test a batch


# Rules that answer later


def test_a_rule_may_keep_clients_waiting_until_all_have_arrived(bench):
    """Means: of (1, 0) and (0, 1), then of (3, 1) and (1, 3)."""
    script = [(1, [0.0, 1.0]), (0, [1.0, 0.0]), (0, [3.0, 1.0]), (1, [1.0, 3.0]), (1, [0.0, 0.0])]
    done = bench(script, updates=5, rule=Barrier()).run()
    later = [(sent.client, sent.version, sent.epochs, sent.weights.tolist()) for sent in done.wire.replies[2:]]
    assert later == [(0, 1, 7, [0.5, 0.5]), (1, 1, 7, [0.5, 0.5]), (0, 2, 7, [2.0, 2.0]), (1, 2, 7, [2.0, 2.0])]


def test_an_update_without_an_answer_is_recorded_so(bench):
    done = bench([(1, [0.0, 1.0]), (0, [1.0, 0.0]), (0, [3.0, 1.0])], updates=3, rule=Barrier()).run()
    assert done.rows["next_epochs"].tolist() == [0, 7, 0]
    assert done.rows["version"].tolist() == [0, 1, 1]
    assert done.rows["bytes"].tolist() == [72, 3 * 72, 72]


# The fake wire itself: a server that breaks the contract must not pass


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


def test_the_fake_notices_a_client_that_is_answered_twice(bench):
    class Twice(Barrier):
        def on_arrival(self, update, model, state):
            return Decision(0.0, 0.0, (Reply(update.client, 1), Reply(update.client, 1)))

    with pytest.raises(AssertionError, match="client 0 trains already"):
        bench([(0, [1.0, 1.0]), (1, [1.0, 1.0])], updates=2, rule=Twice()).run()
