"""The server's loop: take an update, measure it, let the rule merge it, reply, record; evaluate when there is nothing to do.

Everything of a run flows through here, and nothing of it is decided here: order and transport are the wire's, step sizes
and epochs the rule's.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from asyncfeded.config import Evaluation, Limits
from asyncfeded.evaluation import Evaluator, Score
from asyncfeded.record import Record
from asyncfeded.rules import Rule
from asyncfeded.rules.decision import Decision, Reply, State, Update
from asyncfeded.staleness import GlobalModel
from asyncfeded.wire import HEADER, Arrival, Wire

REFUSALS = 10
"""Refused updates in a row, per client, after which the run is given up: nothing that could still be merged comes."""


class Outcome(NamedTuple):
    """How a run ended."""

    reason: str
    seconds: float
    """From the first model sent to the last update taken."""
    score: Score
    """Of the final model."""
    discarded: int
    """Updates that were under way when the run ended."""


class Server:
    """Runs one training. Rank 0.

    Args:
        wire: to the clients.
        rule: how an update enters.
        state: of the rule, before the first update.
        model: the global model, at its start.
        evaluator: tests snapshots of it.
        record: takes a row per update and evaluation.
        limits: when to stop.
        epochs: K of the first round.
        evaluation: how often to evaluate.
        tick: called often, to show how the run goes; must be quick.

    Attributes:
        updates: merged; `refused` are not among them.
        counts: int64 (clients,), updates merged by client.
        epochs: int64 (clients,), K that each client was sent last.
        recent: gamma and eta of the last updates.
        busy_s: seconds spent on updates, from taking one to having recorded it.
        evaluating_s: seconds spent on evaluations while training.
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
        epochs: int,
        evaluation: Evaluation,
        tick: Callable[["Server"], None],
    ) -> None:
        self._wire, self._rule, self.model, self._evaluator, self._record = wire, rule, model, evaluator, record
        self.limits, self._evaluation, self._tick = limits, evaluation, tick
        num_clients = len(model.base)
        self._state, self._first_epochs = state, epochs
        self.epochs = np.zeros(num_clients, np.int64)
        self.counts = np.zeros(num_clients, np.int64)
        self.updates, self.refused, self._refused_in_a_row = 0, 0, 0
        self.recent: deque[tuple[float, float]] = deque(maxlen=200)
        self.score: Score | None = None
        self.busy_s, self.evaluating_s = 0.0, 0.0
        self._start = time.perf_counter()
        self._evaluation_due = self._evaluation_touched = self._start
        self._update_bytes = HEADER.itemsize + 4 * model.layout.size

    @property
    def elapsed_s(self) -> float:
        """Seconds of training."""
        return time.perf_counter() - self._start

    def run(self) -> Outcome:
        """Train until a limit is reached, then stop all clients."""
        self._start = time.perf_counter()
        for client in range(len(self.counts)):
            self._send(Reply(client, self._first_epochs))
        while not (reason := self._reached()):
            arrival = self._wire.next()
            if arrival is not None:
                self._take(arrival)
                if self._starved():
                    self._evaluate()
            elif not self._evaluate():
                self._wire.pause()
            self._record.flush_if_due()
            self._tick(self)
        seconds = self.elapsed_s
        discarded = self._wire.stop()
        if self.score is None or self.score.version != self.model.version:
            self._note(self._evaluator.score(self.model.x, self.model.version))
        assert self.score is not None
        return Outcome(reason, seconds, self.score, discarded)

    def _reached(self) -> str:
        """The limit that is reached, as a sentence; empty if none is."""
        limits = self.limits
        if limits.updates and self.updates >= limits.updates:
            return f"{self.updates} updates were merged (limits.updates)"
        if limits.seconds and self.elapsed_s >= limits.seconds:
            return f"{limits.seconds:g} s have passed (limits.seconds)"
        if limits.accuracy and self.score and self.score.accuracy >= limits.accuracy:
            return f"an accuracy of {self.score.accuracy:.4f} was reached (limits.accuracy = {limits.accuracy:g})"
        return ""

    def _take(self, arrival: Arrival) -> None:
        """One update: measure, merge, reply, record."""
        began = time.perf_counter()
        client, model = arrival.client, self.model
        assert arrival.base_version == model.base_version[client], (arrival, model.base_version)
        tau = model.version - arrival.base_version
        moved, change = model.distances(client, arrival.weights)
        if not math.isfinite(moved):
            raise RuntimeError(
                f"the global model is not finite after {self.updates} updates: the merged steps grew without bound; lower "
                f"rule.lambda or training.learning_rate"
            )
        accepted = math.isfinite(change)
        if accepted:
            update = Update(client, tau, arrival.epochs, arrival.samples, moved, change, arrival.weights)
            decision = self._rule.on_arrival(update, model, self._state)
            self.updates += 1
            self.counts[client] += 1
            self.recent.append((decision.gamma, decision.eta))
            self._refused_in_a_row = 0
        else:
            decision = self._refuse(arrival)
        self._wire.release(arrival)
        replies = () if self._reached() else decision.replies  # at the end clients are told to stop instead
        for reply in replies:
            self._send(reply)
        service_s = time.perf_counter() - began
        self._record.updates.append(
            (
                began - self._start,
                client,
                model.version,
                arrival.base_version,
                tau,
                decision.gamma,
                decision.eta,
                arrival.epochs,
                next((reply.epochs for reply in decision.replies if reply.client == client), 0),
                moved,
                change,
                arrival.train_loss,
                arrival.samples,
                arrival.steps,
                arrival.compute_s,
                arrival.wait_s,
                service_s,
                (1 + len(replies)) * self._update_bytes,
                accepted,
            )
        )
        self.busy_s += time.perf_counter() - began

    def _refuse(self, arrival: Arrival) -> Decision:
        """An update that is not finite: the global model stays, and the client goes on from it."""
        self.refused += 1
        self._refused_in_a_row += 1
        if self._refused_in_a_row >= REFUSALS * len(self.counts):
            raise RuntimeError(
                f"the last {self._refused_in_a_row} updates, from all clients, held weights that are not finite (the last: "
                f"client {arrival.client}, train loss {arrival.train_loss}): training diverges; lower training.learning_rate"
            )
        return Decision(math.nan, 0.0, (Reply(arrival.client, int(self.epochs[arrival.client])),))

    def _send(self, reply: Reply) -> None:
        self.epochs[reply.client] = reply.epochs
        self._wire.reply(reply.client, self.model.version, reply.epochs, self.model.hand_out(reply.client))

    def _due(self) -> bool:
        """Whether an evaluation should run: one is begun, or it is time and the model has changed."""
        if self._evaluator.running:
            return True
        changed = self.score is None or self.score.version != self.model.version
        return changed and time.perf_counter() >= self._evaluation_due

    def _starved(self) -> bool:
        """Whether an evaluation has waited for an idle moment for longer than the time between two."""
        return self._due() and time.perf_counter() - self._evaluation_touched >= self._evaluation.every_s

    def _evaluate(self) -> bool:
        """A snapshot or one batch of an evaluation, if one is due. Returns whether there was something to do."""
        if not self._due():
            return False
        began = time.perf_counter()
        if not self._evaluator.running:
            self._evaluator.start(self.model.x, self.model.version)
            self._evaluation_due = began + self._evaluation.every_s
        elif (score := self._evaluator.step()) is not None:
            self._note(score)
        self._evaluation_touched = time.perf_counter()
        spent = self._evaluation_touched - began
        self.evaluating_s += spent
        rest = self.evaluating_s / self._evaluation.share - self.elapsed_s  # until the share is kept again
        self._evaluation_due = max(self._evaluation_due, self._evaluation_touched + rest)
        return True

    def _note(self, score: Score) -> None:
        self.score = score
        self._record.evaluations.append((self.elapsed_s, *score))
