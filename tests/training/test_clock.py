"""The order of updates on the virtual clock and in a replay, over a fake wire to the workers."""

import math
import random

import numpy as np
import pytest
import torch

from asyncfeded.store.record import EVENT, UPDATE
from asyncfeded.training.clock import OrderedClock, Replay
from asyncfeded.wire.messages import Arrival, Joined, Lost, Order, Refused, Stuck

W = torch.zeros(1)


class Workers:
    """A wire whose workers take one order each, the one that is due first, and finish in an order drawn by `rng`."""

    def __init__(self, num_workers, rng):
        self.num_workers, self.rng = num_workers, rng
        self.training, self.released, self.sent = {}, [], []
        self.waiting = [[] for _ in range(num_workers)]

    def reply(self, order, weights, ready, due):
        self.waiting[order.client % self.num_workers].append((due, order))
        self.begin()

    def begin(self):
        for worker, waiting in enumerate(self.waiting):
            if waiting and worker not in self.training:
                waiting.sort()
                self.training[worker] = waiting.pop(0)[1]
                self.sent.append(self.training[worker])

    def next(self):
        if not self.training or self.rng.random() < 0.3:
            return None
        worker = self.rng.choice(sorted(self.training))
        order = self.training.pop(worker)
        self.begin()
        return Arrival(order.client, order.round, order.version, order.epochs, 1, 1, 0.0, 0.0, 0.0, W)

    def release(self, arrival):
        self.released.append((arrival.client, arrival.round))

    def pause(self):
        pass

    def stop(self):
        return len(self.training)


def order_of_updates(num_workers, rng_seed, duration, num_clients=4, updates=40):
    """(client, round, time) of the first updates, every client being replied to at once."""
    clock = OrderedClock(Workers(num_workers, random.Random(rng_seed)), lambda order, now: now + duration(order))
    for client in range(num_clients):
        clock.reply(Order(client, 0, 0, 1), W, int)
    seen = []
    for _ in range(100_000):
        if len(seen) == updates:
            return seen
        arrival = clock.next()
        if arrival is not None:
            seen.append((arrival.client, arrival.round, clock.now()))
            clock.release(arrival)
            clock.reply(Order(arrival.client, arrival.round + 1, len(seen), 1), W, int)
    raise AssertionError(f"hangs after {seen}")


def test_updates_come_at_their_declared_times():
    seen = order_of_updates(2, 0, lambda order: (1.0, 2.5)[order.client], num_clients=2, updates=7)
    assert seen == [(0, 0, 1.0), (0, 1, 2.0), (1, 0, 2.5), (0, 2, 3.0), (0, 3, 4.0), (0, 4, 5.0), (1, 1, 5.0)]


@pytest.mark.parametrize("num_workers", [1, 2, 3, 4])
@pytest.mark.parametrize("rng_seed", range(5))
def test_the_order_does_not_depend_on_workers_or_on_who_is_done_first(num_workers, rng_seed):
    def duration(order):
        return 1.0 + ((7 * order.client + 3 * order.round) % 5) / 4

    assert order_of_updates(num_workers, rng_seed, duration) == order_of_updates(1, 99, duration)


def test_when_all_times_tie_clients_go_in_turn():
    seen = order_of_updates(3, 1, lambda order: 1.0, updates=8)
    assert [client for client, _, _ in seen] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_a_worker_is_given_first_what_is_due_first():
    workers = Workers(1, random.Random(0))
    clock = OrderedClock(workers, lambda order, now: 10.0 - order.client)
    for client in range(3):
        clock.reply(Order(client, 0, 0, 1), W, int)
    while len(workers.sent) < 3:
        clock.next()
    assert [order.client for order in workers.sent] == [0, 2, 1]  # client 0 was there when nobody else was


def test_updates_that_wait_for_their_turn_are_released_at_a_stop():
    workers = Workers(2, random.Random(0))
    clock = OrderedClock(workers, lambda order, now: 1.0 + 10 * order.client)
    for client in (1, 0):
        clock.reply(Order(client, 0, 0, 1), W, int)
    while 1 in workers.training or (taken := clock.next()) is None:
        if 1 in workers.training:
            clock.next()
    clock.release(taken)
    assert taken.client == 0
    assert clock.stop() == 1
    assert sorted(workers.released) == [(0, 0), (1, 0)]


def record_of(clients, times):
    updates = np.zeros(len(clients), UPDATE)
    updates["client"], updates["time_s"] = clients, times
    updates["round"] = [clients[:row].count(client) for row, client in enumerate(clients)]
    updates["accepted"] = True
    return updates


def repeated(clients, times, *attended):
    """A replay of a record, and of who came and went: kind, client, and number of updates before."""
    events = np.zeros(len(attended), EVENT)
    for row, (kind, client, updates) in zip(events, attended, strict=True):
        row["kind"], row["client"], row["updates"] = kind, client, updates
    return Replay(record_of(clients, times), events)


@pytest.mark.parametrize("times", [[0.5, 1.0, 1.5, 2.0, 2.5, 3.0], [0.0, 0.0, 0.0, 1.0, 1.0, 1.0]])
def test_a_replay_takes_clients_in_the_recorded_order(times):
    """Also of updates that were recorded at one time, of which an ordered clock would take the lowest client first."""
    recorded = [2, 0, 2, 1, 2, 0]
    clock = OrderedClock(Workers(2, random.Random(3)), repeated(recorded, times))
    for client in range(3):
        clock.reply(Order(client, 0, 0, 1), W, int)
    seen = []
    while len(seen) < len(recorded):
        arrival = clock.next()
        if arrival is not None:
            seen.append(arrival.client)
            clock.release(arrival)
            clock.reply(Order(arrival.client, arrival.round + 1, 0, 1), W, int)
    assert seen == recorded
    assert clock.now() == pytest.approx(times[-1])


def test_an_update_that_never_arrived_is_not_trained_again():
    replay = repeated([0, 0], [0.25, 7.5])
    assert [replay(Order(0, n, 0, 1), 0.0) for n in range(3)] == [0.25, 7.5, math.inf]
    workers = Workers(1, random.Random(0))
    clock = OrderedClock(workers, replay)
    clock.reply(Order(1, 0, 0, 1), W, int)
    assert workers.sent == []


def test_an_order_that_gives_nobody_another_turn_ends_in_a_sentence():
    """Client 2 has the turns of a client that is not there; without the sentence the server would wait for ever."""
    clock = OrderedClock(Workers(1, random.Random(0)), repeated([0, 2], [0.5, 1.0]))
    for client in range(2):
        clock.reply(Order(client, 0, 0, 1), W, int)
    while (arrival := clock.next()) is None:
        pass
    clock.release(arrival)
    clock.reply(Order(0, 1, 0, 1), W, int)
    assert clock.next() == Stuck("no client has another turn in the order that is repeated; its record is damaged")


def test_an_order_that_cannot_have_been_is_refused():
    """The second update of client 0 is from a version older than that which its first made."""
    updates = record_of([0, 1, 0], [0.5, 1.0, 1.5])
    updates["version"], updates["base_version"] = [1, 2, 3], [0, 0, 1]
    assert Replay(updates, np.zeros(0, EVENT))
    updates["client"] = [1, 0, 0]
    with pytest.raises(ValueError, match="client 0 made an update to version 2, and its next one from version 1, which is"):
        Replay(updates, np.zeros(0, EVENT))


def test_a_replay_repeats_who_came_and_went_between_the_updates():
    """Client 1 joins after one update, and is lost with its second order; a round that nobody answered is not trained."""
    attended = ("absent", 1, 0), ("joined", 1, 1), ("lost", 1, 3), ("left", 0, 4)
    replay = repeated([0, 1, 0, 0], [0.5, 1.0, 1.5, 2.0], *attended)
    assert replay.absent == [1]
    workers = Workers(2, random.Random(5))
    clock = OrderedClock(workers, replay, meanwhile=replay.meanwhile)
    clock.reply(Order(0, 0, 0, 1), W, int)
    seen = []
    while len(seen) < 7:
        event = clock.next()
        if isinstance(event, Joined):
            clock.reply(Order(1, 0, 1, 1), W, int)
        elif isinstance(event, Arrival):
            clock.reply(Order(event.client, event.round + 1, 0, 1), W, int)
        if event is not None:
            seen.append((type(event), event.clients[0] if isinstance(event, Lost) else event.client))
    assert seen == [(Arrival, 0), (Joined, 1), (Arrival, 1), (Arrival, 0), (Lost, 1), (Arrival, 0), (Lost, 0)]
    assert [(order.client, order.round) for order in workers.sent] == [(0, 0), (0, 1), (1, 0), (0, 2)]


def test_a_replay_repeats_refused_answers_that_have_no_row_and_what_came_after_the_last_update():
    """The wire refuses the answer to round 1 of client 0, and a message that is none; the server its update of round 3."""
    updates = record_of([0, 0, 0, 1], [0.5, 1.0, 1.5, 2.0])
    updates["round"], updates["accepted"][2] = [0, 2, 3, 0], False
    told = [(b"refused", 0, 1), (b"refused", 0, 1), (b"refused", -1, 1), (b"refused", 0, 2), (b"lost", 1, 4)]
    events = np.zeros(len(told), EVENT)
    for name, values in zip(("kind", "client", "updates"), zip(*told, strict=True), strict=True):
        events[name] = values
    replay = Replay(updates, events)
    clock = OrderedClock(Workers(2, random.Random(5)), replay, meanwhile=replay.meanwhile)
    seen, rounds = [], [0, 0]

    def order(client):
        clock.reply(Order(client, rounds[client], 0, 1), W, int)
        rounds[client] += 1

    order(0)
    order(1)
    while replay.goes_on(clock.taken):
        event = clock.next()
        if event is not None:
            seen.append((type(event), getattr(event, "round", getattr(event, "answered", None))))
        if isinstance(event, Arrival) or (isinstance(event, Refused) and event.answered):
            order(event.client)
    assert seen == [(Arrival, 0), (Refused, True), (Refused, False), (Arrival, 2), (Arrival, 3), (Arrival, 0), (Lost, None)]
    assert not Replay(updates, events[:0]).goes_on(4)
