"""Who holds which buffer: one for the clients that were sent the same model, and one of its own for each that moves on."""

import torch

from asyncfeded.model.bases import Bases
from asyncfeded.model.flat import Entry, Layout

LAYOUT = Layout((Entry("w", (2,), 0),), 2, 2)


def bases(clients=3, held=1, layout=LAYOUT):
    return Bases(lambda: torch.zeros(layout.sent), layout, clients, held)


def test_buffers_are_made_when_they_are_needed_and_no_more_than_clients():
    b = bases()
    assert b.num_bytes == 8
    for client in (0, 1, 2, 0, 1, 2):
        b.alone(client)
        b.base[client].fill_(client)
    assert [base.tolist() for base in b.base] == [[0, 0], [1, 1], [2, 2]]
    assert b.num_bytes == bases(held=7).num_bytes == 3 * 8


def test_who_leaves_a_buffer_that_others_hold_gets_another_and_their_model_stays():
    b = bases()
    b.alone(0)
    b.base[0].fill_(5.0)
    b.join(1, 0)
    b.join(2, 0)
    assert b.alone(1).tolist() == [5.0, 5.0]
    b.base[1].fill_(6.0)
    assert [base.tolist() for base in b.base] == [[5.0, 5.0], [6.0, 6.0], [5.0, 5.0]]
    b.join(0, 1)
    before = b.alone(2)
    assert before.data_ptr() == b.base[2].data_ptr()  # it is alone already
    assert b.num_bytes == 2 * 8  # what nobody holds is used again


def test_a_forgotten_buffer_is_not_used_again_since_the_wire_may_be_sending_from_it():
    b = bases(clients=2)
    b.alone(0)
    sending = b.reply[0].fill_(7.0)
    b.forget(0)
    assert b.base[0].numel() == 0
    b.alone(0)
    b.base[0].fill_(8.0)
    assert sending.tolist() == [7.0, 7.0]


def test_what_is_kept_stays_as_it_is_and_is_used_again_afterwards():
    b = bases(clients=2)
    b.alone(0)
    b.base[0].fill_(5.0)
    kept, let_go = list(b.reply), b.keep()
    for number in (6.0, 7.0):
        assert b.alone(0).tolist() == [number - 1.0] * 2
        b.base[0].fill_(number)  # the second time in the same buffer
    assert [reply.tolist() for reply in kept] == [[5.0, 5.0], [0.0, 0.0]]
    let_go()
    b.alone(1)
    assert b.alone(1).data_ptr() == b.base[1].data_ptr() == kept[1].data_ptr()  # it is alone, and may be written again
    b.join(1, 0)
    b.alone(1)
    assert (b.base[1].data_ptr() in {reply.data_ptr() for reply in kept}, b.num_bytes) == (True, 3 * 8)


def test_what_is_a_clients_own_moves_with_it_and_outlives_its_base():
    b = bases(clients=2, layout=LAYOUT.with_own([("m", (1,))]))
    assert b.num_bytes == 2 * 12
    b.own(1).fill_(9.0)
    b.forget(1)
    assert (b.base[1].numel(), b.own(1).tolist()) == (0, [9.0])
    b.alone(1)
    assert (b.base[1].numel(), b.reply[1].tolist(), b.own(0).tolist()) == (2, [0.0, 0.0, 9.0], [0.0])
