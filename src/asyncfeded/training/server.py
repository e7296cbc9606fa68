"""The server's loop: take an update, measure it, let the rule merge it, reply, record; evaluate when there is nothing to do.

Everything of a run flows through here, and nothing of it is decided here: order and transport are the wire's, step sizes
and epochs the rule's.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from asyncfeded.config import Evaluation, Faults, Limits
from asyncfeded.model.global_model import GlobalModel
from asyncfeded.rules import Rule, Waits
from asyncfeded.rules.decision import Decision, Reply, State, Update
from asyncfeded.store.record import Record
from asyncfeded.training.evaluation import Evaluator, Score
from asyncfeded.wire.messages import HEADER, Arrival, Lost, Order, Refused, Wire

INTERRUPTED = "interrupted by a signal"
"""Why a run stopped that may go on later."""


class Outcome(NamedTuple):
    """How a run ended."""

    reason: str
    seconds: float
    """Of training, on the run's clock."""
    wall_s: float
    """Of training, on the wall."""
    score: Score
    """Of the final model."""
    discarded: int
    """Updates that were under way when the run ended."""
    failed: bool
    """Whether it ended for want of clients, before a limit."""


class Server:
    """Runs one training. Rank 0.

    Args:
        wire: to the clients; its clock is the run's.
        rule: how an update enters.
        state: of the rule, before the first update.
        model: the global model, at its start.
        evaluator: tests snapshots of it.
        record: takes a row per update and evaluation.
        limits: when to stop.
        faults: what to do about clients that die or send what cannot be merged.
        epochs: int64 (clients,), K of the first round.
        evaluation: how often to evaluate.
        in_idle_moments: whether evaluations wait for such (wall clock), or take place at their time between two updates
            (virtual clock).
        tick: called between two updates, often, and once more when the run is about to stop (`stopping` is set then): to
            show how it goes, or to keep its state; must be quick.
        say: takes what a person should know, as a sentence.

    Attributes:
        updates: merged; `refused` are not among them.
        refused: updates, and other messages, that were not merged.
        refused_in_a_row: int64 (clients,).
        lost: bool (clients,), whose worker is given up.
        dropped: bool (clients,), who was refused too often.
        failed: why no client is left to train, or none may be lost; empty: it goes on.
        counts: int64 (clients,), updates merged by client.
        epochs: int64 (clients,), K that each client was sent last.
        recent: gamma and eta of the last updates.
        busy_s: processor time spent on updates, from taking one to having recorded it.
        evaluating_s: wall time spent on evaluations while training.
        compute_s: wall time that the clients spent on the updates taken.
        rounds: int64 (clients,), asked of each client.
        out: bool (clients,), who has an order whose update was not taken.
        withheld: replies that the last update would have got if the run had not stopped.
        taken_s: when the last update was taken, on the run's clock.
        evaluation_due: when the evaluation that runs or comes next was due, on the run's clock.
        wall_before_s: wall time of training before `run`, in a run that goes on.
        interrupted: set it to end the training as a limit would.
        stopping: the limit that is reached, as a sentence; empty before.
    """

    def __init__(
        self,
        *,
        wire: Wire,
        rule: Rule,
        state: State,
        model: GlobalModel,
        evaluator: Evaluator,
        record: Record,
        limits: Limits,
        faults: Faults,
        epochs: np.ndarray,
        evaluation: Evaluation,
        in_idle_moments: bool,
        tick: Callable[["Server"], None],
        say: Callable[[str], None],
    ) -> None:
        self._wire, self._rule, self.model, self._evaluator, self.record = wire, rule, model, evaluator, record
        self.limits, self._evaluation, self._tick = limits, evaluation, tick
        self._faults, self._say = faults, say
        num_clients = len(model.base)
        self.state, self.in_idle_moments = state, in_idle_moments
        self.epochs = epochs.astype(np.int64)
        self.rounds = np.zeros(num_clients, np.int64)
        self.out = np.zeros(num_clients, np.bool_)
        self.withheld: tuple[Reply, ...] = ()
        self.counts = np.zeros(num_clients, np.int64)
        self.updates, self.refused = 0, 0
        self.refused_in_a_row = np.zeros(num_clients, np.int64)
        self.lost, self.dropped = np.zeros(num_clients, np.bool_), np.zeros(num_clients, np.bool_)
        self.failed = ""
        self.recent: deque[tuple[float, float]] = deque(maxlen=200)
        self.score: Score | None = None
        self.busy_s, self.evaluating_s, self.compute_s = 0.0, 0.0, 0.0
        self.taken_s, self.evaluation_due = 0.0, 0.0
        self.interrupted, self.stopping = False, ""
        self.wall_before_s, self._began = 0.0, time.perf_counter()
        self._update_bytes = HEADER.itemsize + 4 * model.layout.size

    @property
    def elapsed_s(self) -> float:
        """Seconds of training, on the run's clock."""
        return self._wire.now()

    @property
    def wall_s(self) -> float:
        """Seconds of training, on the wall."""
        return self.wall_before_s + time.perf_counter() - self._began

    def run(self) -> Outcome:
        """Train until a limit is reached, then stop all clients.

        In a run that goes on, clients that are out are given their orders again.
        """
        self._began, discarded = time.perf_counter(), 0
        if self.dropped.all():
            self.failed = "no client is left (all were refused too often before)"
        elif self.rounds.any():
            for client in np.flatnonzero(self.out).tolist():
                # The base is what it was then.
                self._give(client, int(self.model.base_version[client]), lambda stop: None)
        else:
            for client, epochs in enumerate(self.epochs.tolist()):
                self._send(Reply(client, epochs))
        while not (reason := self._reached()):
            event = self._wire.next()
            if event is None:
                if not (self.in_idle_moments and self._evaluate()):
                    self._wire.pause()
            elif isinstance(event, Lost):
                self._lose(event)
            else:
                if not self.in_idle_moments:
                    self._evaluate_up_to(self.elapsed_s)
                if isinstance(event, Refused):
                    self._refuse(event)
                elif self._reached():  # by the arrival's time, or by an evaluation before it
                    self._wire.release(event)
                    discarded += 1
                else:
                    self._take(event)
                    if self.in_idle_moments and self.elapsed_s - self.evaluation_due > self._evaluation.every_s:
                        self._evaluate()  # no idle moment for a whole period
            self.record.flush_if_due()
            self._tick(self)
        self.stopping, seconds, wall_s = reason, self.elapsed_s, self.wall_s
        self._tick(self)
        if self.limits.seconds and not self.in_idle_moments:
            seconds = min(seconds, self.limits.seconds)
        discarded += self._wire.stop()
        if not self.model.is_finite():
            raise RuntimeError(self._diverged())
        if self.score is None or self.score.version != self.model.version:
            self._note(self._evaluator.score(self.model.x, self.model.version), seconds)
        assert self.score is not None
        return Outcome(reason, seconds, wall_s, self.score, discarded, bool(self.failed))

    def _reached(self) -> str:
        """The limit that is reached, as a sentence; empty if none is."""
        limits = self.limits
        if self.failed:
            return self.failed
        if self.interrupted:
            return INTERRUPTED
        if limits.updates and self.updates >= limits.updates:
            return f"{self.updates} updates were merged (limits.updates)"
        if limits.seconds and self.elapsed_s >= limits.seconds:
            return f"{limits.seconds:g} s have passed (limits.seconds)"
        if self.score is not None and self._good_enough():
            return f"an accuracy of {self.score.accuracy:.4f} was reached (limits.accuracy = {limits.accuracy:g})"
        return ""

    def _take(self, arrival: Arrival) -> None:
        """One update: measure, merge, reply, record."""
        began, cpu, arrived_s = time.perf_counter(), time.thread_time(), self.elapsed_s
        client, model = arrival.client, self.model
        self.compute_s += arrival.compute_s
        self.taken_s, self.out[client] = arrived_s, False
        if self.lost[client] or self.dropped[client]:
            self._wire.release(arrival)
            self._refuse(Refused(client, "its client was given up", answered=True))
            return
        assert arrival.base_version == model.base_version[client], (arrival, model.base_version)
        tau = model.version - arrival.base_version
        moved, change = model.distances(client, arrival.weights)
        if not math.isfinite(moved):
            raise RuntimeError(self._diverged())
        update = Update(client, tau, arrival.epochs, arrival.samples, moved, change, arrival.weights)
        refusal = self._fault(update, arrival.train_loss)
        if refusal:
            again = self._note_refusal(client, refusal)
            decision = Decision(math.nan, 0.0, (Reply(client, int(self.epochs[client])),) if again else ())
        else:
            decision = self._rule.on_arrival(update, model, self.state)
            self.updates += 1
            self.counts[client] += 1
            self.recent.append((decision.gamma, decision.eta))
            self.refused_in_a_row[client] = 0
        replies = decision.replies
        if self._reached():  # clients are told to stop instead
            replies, self.withheld = (), decision.replies
        for reply in replies:
            self._send(reply)
        model.finish_merge()
        self._wire.release(arrival)
        service_s = time.perf_counter() - began
        self.record.updates.append(
            (
                arrived_s,
                client,
                arrival.round,
                model.version,
                arrival.base_version,
                tau,
                decision.gamma,
                decision.eta,
                arrival.epochs,
                next((reply.epochs for reply in replies if reply.client == client), 0),
                moved,
                change,
                arrival.train_loss,
                arrival.samples,
                arrival.steps,
                arrival.compute_s,
                arrival.wait_s,
                service_s,
                arrival.queue,
                (1 + len(replies)) * self._update_bytes,
                not refusal,
            )
        )
        self.busy_s += time.thread_time() - cpu

    def _fault(self, update: Update, train_loss: float) -> str:
        """Why an update cannot be merged, as a sentence; empty if it can."""
        limits = self._faults
        if not math.isfinite(update.change):
            return f"weights that are not finite (train loss {train_loss:g}): lower training.learning_rate if that is usual"
        if limits.max_gamma and update.gamma > limits.max_gamma:
            return f"staleness gamma = {update.gamma:g}, more than faults.max_gamma = {limits.max_gamma:g}"
        if limits.max_change and update.change > limits.max_change:
            return f"||Delta|| = {update.change:g}, more than faults.max_change = {limits.max_change:g}"
        return ""

    def _note_refusal(self, client: int, reason: str) -> bool:
        """Count a refusal and tell of it. Returns whether the client may go on."""
        self.refused += 1
        self.refused_in_a_row[client] += 1
        row, most = int(self.refused_in_a_row[client]), self._faults.max_refusals
        self._say(f"refused, client {client}: {reason}")
        if row >= most and not self.dropped[client]:
            self.dropped[client] = True
            self._bury((client,), f"{row} refusals in a row (faults.max_refusals)")
        return row < most

    def _refuse(self, event: Refused) -> None:
        """A message that the wire did not take for an update."""
        client = event.client
        if client < 0:
            self.refused += 1
            self._say(f"refused: {event.reason}")
            return
        if event.answered:
            self.out[client] = False
        again = self._note_refusal(client, event.reason)
        if self.lost[client] and again:
            self.lost[client] = False
            self._say(f"client {client} is back and starts anew")
        if event.answered and again:
            self._send(Reply(client, int(self.epochs[client])))

    def _lose(self, event: Lost) -> None:
        """A worker is given up: go on without its clients, or stop."""
        moved = "" if event.clients else "; its clients move to other ranks"
        self._say(f"rank {event.worker + 1} is given up: {event.reason}{moved}")
        clients = tuple(client for client in event.clients if not (self.lost[client] or self.dropped[client]))
        self.lost[list(clients)] = True
        self._bury(clients, event.reason)
        if self._faults.on_death == "abort":
            self.failed = f"a worker died ({event.reason}; faults.on_death = abort)"

    def _bury(self, clients: tuple[int, ...], reason: str) -> None:
        """Go on without these clients."""
        for client in clients:
            self.out[client] = False
            self.model.forget(client)
            self._say(f"goes on without client {client}: {reason}")
        if (self.lost | self.dropped).all():
            self.failed = f"no client is left ({reason})"
        elif isinstance(self._rule, Waits):
            for client in clients:
                for reply in self._rule.on_loss(client, self.model, self.state):
                    self._send(reply)

    def _diverged(self) -> str:
        return (
            f"the global model is not finite after {self.updates} updates: the steps merged grew without bound; lower the "
            f"rule's step size (rule.lambda of asyncfeded) or training.learning_rate"
        )

    def _send(self, reply: Reply) -> None:
        client, epochs = reply
        self.epochs[client] = epochs
        self.rounds[client] += 1
        self.out[client] = True
        self.model.hold(client)
        self._give(client, self.model.version, partial(self.model.hand_out, client))

    def _give(self, client: int, version: int, ready: Callable[[int], object]) -> None:
        order = Order(client, int(self.rounds[client]) - 1, version, int(self.epochs[client]))
        self._wire.reply(order, self.model.base[client], ready)

    def _evaluate(self) -> bool:
        """A snapshot or one batch of an evaluation, if one is due and within its share. Returns whether there was one."""
        began = self.elapsed_s
        changed = self.model.version != (self.score.version if self.score else 0)
        due = self._evaluator.running or (changed and began >= self.evaluation_due)
        if not due or self.evaluating_s > self._evaluation.share * began:
            return False
        if not self._evaluator.running:
            self._evaluator.start(self.model.x, self.model.version)
            self.evaluation_due = began
        elif (score := self._evaluator.step()) is not None:
            self._note(score, self.elapsed_s)
            self.evaluation_due += self._evaluation.every_s
        self.evaluating_s += self.elapsed_s - began
        return True

    def _evaluate_up_to(self, time_s: float) -> None:
        """The evaluations that are due up to a time, of the model as it stands, in one piece."""
        while self.evaluation_due <= min(time_s, self.limits.seconds or math.inf) and not self._good_enough():
            began = time.perf_counter()
            if self.score is None or self.score.version != self.model.version:
                score = self._evaluator.score(self.model.x, self.model.version)
            else:
                score = self.score
            self._note(score, self.evaluation_due)
            self.evaluation_due += self._evaluation.every_s
            self.evaluating_s += time.perf_counter() - began

    def _good_enough(self) -> bool:
        limit = self.limits.accuracy
        return bool(limit) and self.score is not None and self.score.accuracy >= limit

    def _note(self, score: Score, time_s: float) -> None:
        self.score = score
        self.record.evaluations.append((time_s, *score))
