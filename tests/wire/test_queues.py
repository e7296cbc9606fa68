"""Which order a free worker gets: of its own clients, or of another worker's."""

import torch

from asyncfeded.wire.assignment import Assignment
from asyncfeded.wire.messages import Order, PendingOrder
from asyncfeded.wire.queues import Queues


def waiting(num_workers, num_clients, alike, orders):
    """Queues in which orders (due, client) wait, each for the worker that its client lives on; and who was moved."""
    assignment, moved = Assignment(num_workers, num_clients, moving=True), []
    queues = Queues(num_workers, assignment, alike, moved.append)
    for number, (due, client) in enumerate(orders):
        queues.add(assignment.of(client), PendingOrder(due, number, Order(client, 0, 0, 1), torch.zeros(1)))
    return queues, moved


def popped(queues, worker, times):
    return [pending and pending.order.client for pending in (queues.pop(worker) for _ in range(times))]


def test_own_clients_go_first_and_then_those_of_others_that_are_due_first():
    """Clients 0 and 3 live on worker 0, 1 and 4 on worker 1, 2 and 5 on worker 2."""
    queues, moved = waiting(3, 6, [0, 0, 0], [(9.0, 0), (3.0, 1), (4.0, 4), (1.0, 2), (5.0, 5)])
    assert popped(queues, 0, 3) == [0, 2, 1]
    assert moved == [2, 1]
    assert popped(queues, 1, 1) == [4]
    assert popped(queues, 2, 2) == [5, None]


def test_a_worker_keeps_no_more_visitors_than_it_has_clients():
    """Worker 1 has clients 1 and 3; after 0 and 2 it takes no third visitor, but these again, and moves no data for it."""
    queues, moved = waiting(2, 5, ["a", "a"], [(1.0, 0), (2.0, 2), (3.0, 4)])
    assert popped(queues, 1, 3) == [0, 2, None]
    queues.add(0, PendingOrder(4.0, 9, Order(2, 1, 1, 1), torch.zeros(1)))
    assert popped(queues, 1, 2) == [2, None]
    assert moved == [0, 2]


def test_workers_that_compute_otherwise_take_nothing_from_each_other():
    for alike in ([("vm", "cpu", 1), ("vm", "cpu", 2)], ()):
        queues, _ = waiting(2, 4, alike, [(1.0, 1)])
        assert popped(queues, 0, 1) == [None]
        assert popped(queues, 1, 1) == [1]


def test_free_workers_are_told_once_orders_were_added_and_lost_ones_never():
    assignment = Assignment(3, 6, moving=True)
    queues = Queues(3, assignment, [0, 0, 0], int)
    pending = PendingOrder(1.0, 0, Order(0, 0, 0, 1), torch.zeros(1))
    assert queues.idle([[], [], []]) == []
    queues.add(0, pending)
    assignment.lost.add(2)
    assert queues.idle([[pending], [], []]) == [1]
    assert queues.idle([[pending], [], []]) == []


def test_what_waits_for_a_lost_worker_is_taken_at_once():
    queues, _ = waiting(2, 4, [], [(2.0, 0), (1.0, 2), (0.0, 1)])
    assert {pending.order.client for pending in queues.clear(0)} == {0, 2}
    assert popped(queues, 0, 1) == [None]


def test_orders_are_left_to_the_others():
    queues, _ = waiting(2, 6, ["a", "a"], [(1.0, 0), (2.0, 1), (3.0, 2)])
    assert queues.pop(0, leave=2).order.client == 0
    assert queues.pop(0, leave=2) is None
    assert popped(queues, 0, 1) == [2]
