"""Orders that are due soon go to the workers, the others wait: which, and that the order of updates stays the same."""

import random

import pytest
import torch

from asyncfeded.training.clock import OrderedClock
from asyncfeded.wire.messages import Arrival, Lost, Order, Refused
from asyncfeded.wire.nearest import Nearest


class FakeDisk:
    """Notes what is put away and read ahead, by the first number of the buffer."""

    def __init__(self):
        self.away, self.ahead = [], []

    def put_away(self, buffer):
        self.away.append(int(buffer[0]))

    def read_ahead(self, buffer):
        self.ahead.append(int(buffer[0]))


class FakeWire:
    """Two workers, client i on worker i mod 2, that train the order due first, done in an order drawn by `rng`."""

    def __init__(self, rng=None):
        self.rng, self.has, self.events, self.most = rng, {}, [], 0

    def reply(self, order, weights, ready, due):
        assert order.client not in self.has
        self.has[order.client] = (due, order)

    def next(self):
        if self.events:
            return self.events.pop(0)
        mine = [[at for at in self.has.values() if at[1].client % 2 == worker] for worker in (0, 1)]
        first = [min(found) for found in mine if found]
        if self.rng is None or not first or self.rng.random() < 0.3:
            return None
        order = self.rng.choice(first)[1]
        del self.has[order.client]
        return Arrival(order.client, order.round, order.version, order.epochs, 1, 1, 0.0, 0.0, 0.0, torch.zeros(1))

    def release(self, arrival):
        pass


def order(client, number=0):
    return Order(client, number, 0, 1)


def give(nearest, client, due, number=0):
    made = []
    nearest.reply(order(client, number), torch.tensor([float(client)]), made.append, due)
    assert made == [1]  # x may change after this


def test_the_orders_that_are_due_next_are_given_and_the_others_put_away():
    """Two are near. Client 3 comes before both; client 2 has its turn when client 3 is done."""
    wire, disk = FakeWire(), FakeDisk()
    nearest = Nearest(wire, disk, 2)
    for client, due in ((0, 1.0), (1, 2.0), (2, 3.0), (4, 5.0), (3, 0.5)):
        give(nearest, client, due)
    assert (sorted(wire.has), disk.away, disk.ahead) == ([0, 1, 3], [2, 4], [0, 1, 3])
    arrived = Arrival(3, 0, 0, 1, 1, 1, 0.0, 0.0, 0.0, torch.zeros(1))
    del wire.has[3]
    give(nearest, 3, 4.0, number=1)  # the server replies before it releases
    nearest.release(arrived)
    assert (sorted(wire.has), disk.away) == ([0, 1], [2, 4, 3])
    del wire.has[0]
    nearest.release(arrived._replace(client=0))  # without a reply
    assert sorted(wire.has) == [1, 2]


def test_a_client_that_is_lost_or_refused_makes_room_for_the_next():
    wire = FakeWire()
    nearest = Nearest(wire, FakeDisk(), 1)
    for client in range(4):
        give(nearest, client, float(client))
    wire.events = [Refused(0, "it is bad", True), Lost(1, (1, 3), "it died")]
    del wire.has[0]
    nearest.next()
    assert sorted(wire.has) == [1]
    nearest.next()
    assert sorted(wire.has) == [1, 2]  # the wire below has let go of client 1 itself; nobody waits for client 3


@pytest.mark.parametrize("most", [1, 2, 5, 100])
def test_updates_come_in_the_same_order_however_few_are_near(most):
    """Ten clients of different speeds, some due at once; nothing hangs, whoever is done first."""

    def duration(order):
        return 1.0 + ((7 * order.client + 3 * order.round) % 5) / 4

    def run(most, seed):
        wire = FakeWire(random.Random(seed))
        clock = OrderedClock(Nearest(wire, FakeDisk(), most), lambda order, now: now + duration(order))
        for client in range(10):
            clock.reply(order(client), torch.zeros(1), int)
        seen = []
        for _ in range(100_000):
            if len(seen) == 60:
                return seen
            if (arrival := clock.next()) is not None:
                seen.append((arrival.client, arrival.round, clock.now()))
                clock.reply(order(arrival.client, arrival.round + 1), torch.zeros(1), int)
                clock.release(arrival)
        raise AssertionError(f"hangs after {seen}")

    assert run(most, 1) == run(100, 0)
