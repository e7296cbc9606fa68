"""Which orders a worker has: when it gets a second one, whose time begins when, and what becomes of them."""

import pytest
import torch

from asyncfeded.wire.in_hand import SHORT_S, InHand
from asyncfeded.wire.messages import Order, PendingOrder

QUICK, SLOW = 0.5 * SHORT_S, 2 * SHORT_S


class Sent:
    """A transfer that is complete, or not."""

    def __init__(self, complete=True):
        self.sent = lambda: complete


def pending(client):
    return PendingOrder(0.0, client, Order(client, 0, 0, 1), torch.zeros(1))


def has(hands, *clients, now=0.0, worker=0):
    """The worker is sent the orders of these clients."""
    for client in clients:
        hands.give(worker, pending(client), Sent(), now)


def answer(hands, now, worker=0):
    """The worker answers its first order at that time; the client, and whether it was given up."""
    hands.answers(worker, now)
    order, given_up = hands.answered(worker)
    return order.order.client, given_up


@pytest.mark.parametrize(("two", "round_s", "leaves"), [(True, QUICK, 0), (True, SLOW, None), (False, QUICK, None)])
def test_a_second_order_is_for_a_quick_worker_and_a_third_for_nobody(two, round_s, leaves):
    hands = InHand([two])
    assert hands.leaves(0) == 0
    has(hands, 7)
    assert hands.leaves(0) is None  # nobody knows how quick it is
    answer(hands, round_s)
    has(hands, 8, now=round_s)
    assert hands.leaves(0) == leaves
    has(hands, 9, now=round_s)
    assert hands.leaves(0) is None


def test_who_trains_leaves_an_order_to_each_of_the_others_that_has_not_two():
    hands = InHand([True] * 4)
    for worker in (0, 1, 2):
        has(hands, worker, worker=worker)
        answer(hands, QUICK, worker)
    has(hands, 4, 5, worker=1)
    has(hands, 6, worker=2)
    assert hands.leaves(0) == 0  # it is free
    has(hands, 7)
    assert [hands.leaves(worker) for worker in range(4)] == [2, None, 2, 0]


def test_the_time_of_an_order_begins_when_the_one_before_is_answered():
    hands = InHand([True])
    has(hands, 1, now=10.0)
    has(hands, 2, now=11.0)
    assert hands.answers(0, 14.0) == 4.0
    hands.answered(0)
    assert hands.answers(0, 16.5) == 2.5
    hands.answered(0)
    has(hands, 3, now=20.0)
    assert hands.answers(0, 21.0) == 1.0


def test_the_first_order_is_answered_first_when_it_was_sent():
    hands = InHand([True])
    assert (hands.first(0), hands.has_first(0), hands.answered(0)) == (None, True, (None, False))
    hands.give(0, pending(1), Sent(False), 0.0)
    has(hands, 2)
    assert not hands.has_first(0)
    assert answer(hands, 1.0) == (1, False)
    assert hands.has_first(0)
    assert answer(hands, 2.0) == (2, False)


def test_answers_to_orders_that_were_given_up_are_in_vain_and_the_next_is_not():
    hands = InHand([True, True])
    has(hands, 1, 2)
    has(hands, 5, worker=1)
    assert [each.order.client for each in hands.give_up(0, gone=False)] == [1, 2]
    assert answer(hands, 1.0) == (1, True)
    has(hands, 3)
    assert [each.order.client for each in hands.give_up(0, gone=False)] == [3]  # 2 was given to somebody else before
    assert [answer(hands, 2.0 + i) for i in range(2)] == [(2, True), (3, True)]
    has(hands, 4)
    assert answer(hands, 5.0) == (4, False)
    assert answer(hands, 5.0, worker=1) == (5, False)


def test_who_has_gone_has_nothing_in_hand_and_a_follower_begins_anew():
    hands = InHand([True])
    has(hands, 1, 2)
    assert [each.order.client for each in hands.give_up(0, gone=True)] == [1, 2]
    assert (hands.first(0), len(hands.sending[0])) == (None, 2)  # MPI may still send from them
    orders, sending = hands.forget(0)
    assert (len(orders), len(sending)) == (0, 2)
    has(hands, 3)
    assert answer(hands, 1.0) == (3, False)
