"""The server's loop: take an update, measure it, let the rule merge it, reply, record; evaluate in idle moments.

All updates of a run pass through this loop, but the wire decides their order and transport, and the rule decides step
sizes and epochs.
"""

import math
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor

from asyncfeded.model.global_model import is_finite
from asyncfeded.rules.contract import Rule, on_arrival, on_loss
from asyncfeded.rules.decision import Decision, Reply, Update
from asyncfeded.store.record import UpdateRow
from asyncfeded.training.elsewhere import Elsewhere
from asyncfeded.training.evaluation import Evaluator, Score
from asyncfeded.training.evaluations import Evaluations
from asyncfeded.training.server_refusals import why_refused
from asyncfeded.training.server_state import ServerSettings, ServerState
from asyncfeded.wire.messages import HEAD, Arrival, Joined, Lost, Order, Refused, Stuck, Wire

INTERRUPTED = "interrupted by a signal"
"""Reason of a run that stopped and may be resumed."""


class DivergedError(Exception):
    """The global model is not finite after so many updates: there is nothing left to save or to go on with."""

    def __init__(self, updates: int) -> None:
        super().__init__(
            f"the global model is not finite after {updates} updates: the steps merged grew without bound; lower the rule's "
            f"step size (rule.lambda of asyncfeded) or training.learning_rate"
        )


class Outcome(NamedTuple):
    """How a run ended."""

    reason: str
    seconds: float
    """Time of training, on the run's clock."""
    wall_s: float
    """Time of training, on the wall clock."""
    score: Score
    """Score of the final model."""
    discarded: int
    """Updates that were under way when the run ended."""
    failed: bool
    """Whether it ended before a limit because clients were lost."""


class Observer(Protocol):
    """Shows a run and saves it. The server calls it between two updates, so it must be quick."""

    def on_update(self, row: UpdateRow) -> None:
        """An update was merged or refused."""

    def on_evaluation(self, time_s: float, score: Score) -> None:
        """The global model was evaluated, at that time on the run's clock."""

    def on_client_evaluation(self, time_s: float, arrival: Arrival) -> None:
        """A client has tested the model that it was sent, on its own data; its update was merged at that time."""

    def tick(self, server: "Server") -> None:
        """Is called often, and once more just before the run stops; then `server.stopping` is set."""

    def say(self, sentence: str, kind: str = "", client: int = -1) -> None:
        """Show a sentence to the user, and keep it as an event of that kind (record.EVENT); empty: only show it."""


class Server:
    """Runs one training. Rank 0.

    Args:
        wire: the wire to the clients; its clock is that of the run.
        rule: merges the updates.
        state: the state in which the run begins or continues.
        evaluator: tests snapshots of the global model.
        settings: limits, faults and evaluation.
        observer: is called for every update and evaluation.
        whole: gives the whole global model, float32 (size,), where the state has a slice of it.

    Attributes:
        state: the current state.
        settings: as given.
        evaluations: the tests of the global model.
        recent: gamma and eta of the last 200 updates.
        failed: why the run cannot continue: no client is left, a worker died and none may die, or an evaluation gave no
            number; empty: it continues.
        interrupted: set it to end the training as a limit would.
        stopping: why the run stops, as a sentence; empty before.
        final: the whole global model when the run stops.
    """

    def __init__(
        self,
        wire: Wire,
        rule: Rule,
        state: ServerState,
        evaluator: Evaluator | Elsewhere,
        settings: ServerSettings,
        observer: Observer,
        whole: Callable[[Tensor], Tensor] = lambda x: x,
    ) -> None:
        self._wire, self._rule, self.state = wire, rule, state
        self.settings, self._observer, self._whole = settings, observer, whole
        self.recent: deque[tuple[float, float]] = deque(maxlen=200)
        self.failed, self.interrupted, self.stopping, self.final = "", False, "", state.tested
        self._began, self._update_bytes = time.perf_counter(), HEAD + 4 * (settings.sent or state.model.layout.sent)
        self.evaluations = Evaluations(evaluator, state, settings, observer.on_evaluation, whole)

    @property
    def elapsed_s(self) -> float:
        """Seconds of training, on the run's clock."""
        return self._wire.now()

    @property
    def wall_s(self) -> float:
        """Seconds of training, on the wall clock."""
        return self.state.wall_before_s + time.perf_counter() - self._began

    def run(self) -> Outcome:
        """Train until a limit is reached, then stop all clients.

        In a resumed run, clients that had an order get it again.

        Raises:
            DivergedError: the global model is not finite.
        """
        state = self.state
        self._began, discarded = time.perf_counter(), 0
        if state.dropped.all():
            self.failed = "no client is left (all were refused too often before)"
        elif state.rounds.any():
            for client in np.flatnonzero(state.out & ~state.lost).tolist():
                if math.isnan(state.share[client]):  # its base is the same as before
                    state.share[client] = self._share(client)
                self._give(client, int(state.model.base_version[client]), lambda stop: None)
        else:
            for client in np.flatnonzero(~state.lost).tolist():
                self._send(state.again(client))
        self._begin_without(np.flatnonzero(state.lost).tolist())
        self._observer.tick(self)  # before the first update
        while not (reason := self._reached()):
            event = self._wire.next()
            if event is None:
                if not (self.settings.in_idle_moments and self.evaluations.go_on(self.elapsed_s)):
                    self._wire.pause()
            elif isinstance(event, Lost):
                self._lose(event)
            elif isinstance(event, Joined):
                self._welcome(event)
            elif isinstance(event, Stuck):
                self.failed = event.reason
            else:
                if not self.settings.in_idle_moments:
                    self.evaluations.make_up_to(self.elapsed_s)
                if isinstance(event, Refused):
                    self._refuse(event)
                elif self._reached():  # by the time of the arrival, or by an evaluation before it
                    self._wire.release(event)
                    discarded += 1
                else:
                    self._take(event)
                    late_s = self.elapsed_s - state.evaluation_due_s
                    if self.settings.in_idle_moments and late_s > self.settings.evaluation.every_s:
                        self.evaluations.go_on(self.elapsed_s)  # no idle moment for a whole period
            self._observer.tick(self)
        self.evaluations.settle()
        self.stopping, seconds, wall_s = reason, self.elapsed_s, self.wall_s
        self.final = self._whole(state.tested)
        self._observer.tick(self)
        if self.settings.limits.seconds and not self.settings.in_idle_moments:
            seconds = max(min(seconds, self.settings.limits.seconds), state.taken_s)  # a resumed run may be past the limit
        discarded += self._wire.stop()
        if not is_finite(self.final):
            raise DivergedError(state.updates)
        self.evaluations.finish(self.final, seconds)
        self.failed = self.failed or self.evaluations.failed
        assert state.score is not None
        return Outcome(self.failed or reason, seconds, wall_s, state.score, discarded, bool(self.failed))

    def _begin_without(self, absent: list[int]) -> None:
        """Begin, or go on, without the clients that are not there: they may join."""
        state = self.state
        for client in absent:
            state.out[client] = False
            state.model.forget(client)
            for reply in on_loss(self._rule, client, state.model, state.rule, state.out):
                self._send(reply)
            state.follow()

    def _reached(self) -> str:
        """The limit that is reached, as a sentence; empty if no limit is."""
        limits = self.settings.limits
        self.failed = self.failed or self.evaluations.failed
        if self.failed:
            return self.failed
        if self.interrupted:
            return INTERRUPTED
        if limits.updates and self.state.updates >= limits.updates:
            goes_on = self.settings.goes_on
            if not (goes_on and goes_on()):
                return f"{self.state.updates} updates were merged (limits.updates)"
        if limits.seconds and self.elapsed_s >= limits.seconds:
            return f"{limits.seconds:g} s have passed (limits.seconds)"
        return self.evaluations.good_enough() if limits.target else ""

    def _take(self, arrival: Arrival) -> None:
        """Measure one update, merge it, reply, and record it."""
        state = self.state
        began, cpu, arrived_s = time.perf_counter(), time.thread_time(), self._wire.now()
        client, model = arrival.client, state.model
        state.compute_s += arrival.compute_s
        state.taken_s, state.out[client] = arrived_s, False
        if state.lost[client] or state.dropped[client]:
            self._wire.release(arrival)
            self._refuse(Refused(client, "its client was given up", answered=True))
            return
        assert arrival.base_version == model.base_version[client], (arrival, model.base_version)
        tau = model.version - arrival.base_version
        share, rate = float(state.share[client]), float(state.learning_rate[client])
        moved, change = model.distances(client, arrival.weights)
        if not math.isfinite(moved):
            raise DivergedError(state.updates)
        measured_s = time.perf_counter()
        w = model.without_own(arrival.weights)
        update = Update(client, tau, arrival.epochs, arrival.samples, moved, change, w, arrival.measured)
        refusal = why_refused(update, arrival, self.settings.faults, self.settings.workloads)
        if refusal:
            again = self._note_refusal(client, refusal)
            decision = Decision(math.nan, 0.0, (state.again(client),) if again else ())
        else:
            model.keep_own(client, arrival.weights)
            decision = on_arrival(self._rule, arrival.round, update, model, state.rule, state.out)
            state.updates += 1
            state.steps[client] += arrival.steps
        decided_s, replies = time.perf_counter(), decision.replies
        if self._reached():  # the clients get a stop instead
            replies, state.withheld = (), decision.replies
        for reply in replies:
            self._send(reply)
        model.finish_merge()
        state.follow()
        self._wire.release(arrival)
        service_s = time.perf_counter() - began
        if not refusal:  # the client has its reply
            state.counts[client] += 1
            state.refused_in_a_row[client] = 0
            self.recent.append((decision.gamma, decision.eta))
        self._observer.on_update(
            UpdateRow(
                time_s=arrived_s,
                client=client,
                round=arrival.round,
                version=model.version,
                base_version=arrival.base_version,
                tau=tau,
                gamma=decision.gamma,
                eta=decision.eta,
                epochs=arrival.epochs,
                next_epochs=next((reply.epochs for reply in replies if reply.client == client), 0),
                moved_norm=moved,
                change_norm=change,
                train_loss=arrival.train_loss,
                samples=arrival.samples,
                steps=arrival.steps,
                share=share,
                learning_rate=rate,
                measured=arrival.measured,
                compute_s=arrival.compute_s,
                wait_s=arrival.wait_s,
                service_s=service_s,
                receive_s=began - arrival.began_s,
                measure_s=measured_s - began,
                merge_s=decided_s - measured_s,
                queue=arrival.queue,
                bytes=(1 + len(replies)) * self._update_bytes,
                accepted=not refusal,
            )
        )
        if (every := self.settings.evaluation.client_rounds) and not arrival.round % every and not refusal:
            self._observer.on_client_evaluation(arrived_s, arrival)
        state.busy_s += time.thread_time() - cpu

    def _note_refusal(self, client: int, reason: str) -> bool:
        """Count a refusal and report it. Returns whether the client may continue."""
        state = self.state
        state.refused += 1
        state.refused_in_a_row[client] += 1
        row, most = int(state.refused_in_a_row[client]), self.settings.faults.max_refusals
        self._observer.say(f"refused, client {client}: {reason}", "refused", client)
        if row >= most and not state.dropped[client]:
            state.dropped[client] = True
            self._go_on_without((client,), f"{row} refusals in a row (faults.max_refusals)", "dropped")
        return row < most

    def _refuse(self, event: Refused) -> None:
        """Handle a message that the wire did not accept as an update."""
        client = event.client
        if client < 0:
            self.state.refused += 1
            self._observer.say(f"refused: {event.reason}", "refused")
            return
        if event.answered:
            self.state.out[client] = False
        again = self._note_refusal(client, event.reason)
        if self.state.lost[client] and again:
            self.state.lost[client] = False
            self._observer.say(f"client {client} is back and starts anew", "back", client)
        if event.answered and again:
            self._send(self.state.again(client))

    def _lose(self, event: Lost) -> None:
        """Handle a worker that is given up: continue without its clients, or stop."""
        moved = "" if event.clients else "; its clients move to other ranks"
        if not event.left:
            self._observer.say(f"{event.worker} is given up: {event.reason}{moved}", "rank")
        clients = tuple(client for client in event.clients if not (self.state.lost[client] or self.state.dropped[client]))
        self.state.lost[list(clients)] = True
        self._go_on_without(clients, event.reason, "left" if event.left else "lost")
        if self.settings.faults.on_death == "abort" and not event.left:
            self.failed = f"a worker died ({event.reason}; faults.on_death = abort)"

    def _welcome(self, event: Joined) -> None:
        """Give a client that has joined its first order."""
        client, state = event.client, self.state
        state.lost[client], state.refused_in_a_row[client] = False, 0
        self._observer.say(f"client {client} has joined: {event.where}", "joined", client)
        if not state.out[client]:
            self._send(state.again(client))

    def _go_on_without(self, clients: tuple[int, ...], reason: str, kind: str) -> None:
        """Continue without these clients."""
        for client in clients:
            self.state.out[client] = False
            self.state.model.forget(client)
            self._observer.say(f"goes on without client {client}: {reason}", kind, client)
        if (self.state.lost | self.state.dropped).all():
            if self.settings.goes_on is None or self.settings.goes_on():  # otherwise a replay is at its end
                self.failed = f"no client is left ({reason})"
            return
        for client in clients:
            for reply in on_loss(self._rule, client, self.state.model, self.state.rule, self.state.out):
                self._send(reply)
            self.state.follow()

    def _send(self, reply: Reply) -> None:
        client = reply.client
        self.state.epochs[client], self.state.learning_rate[client] = reply.epochs, reply.learning_rate
        self.state.rounds[client] += 1
        self.state.share[client] = self._share(client)
        self.state.out[client] = True
        self.state.model.hold(client)
        self._give(client, self.state.model.version, partial(self.state.model.hand_out, client))

    def _give(self, client: int, version: int, ready: Callable[[int], object]) -> None:
        state = self.state
        number, K = int(state.rounds[client]) - 1, int(state.epochs[client])
        share, rate = float(state.share[client]), float(state.learning_rate[client])
        order = Order(client, number, version, K, int(state.steps[client]), share, rate)
        self._wire.reply(order, state.model.reply[client], ready)

    def _share(self, client: int) -> float:
        """The part of the run that is done; in a replay, as the client was told."""
        if self.settings.share:
            return self.settings.share(client, int(self.state.rounds[client]) - 1)
        return self.state.share_done(self.settings.limits, self._wire.now)
