"""Headers, and what an update is refused for."""

import numpy as np
import pytest

from asyncfeded.mpi.world import PROTOCOL
from asyncfeded.wire import messages, transfer
from asyncfeded.wire.messages import HEADER, MAGIC, Header, Order

GOOD = Header(MAGIC, PROTOCOL, 0, 3, 2, 7, 40, 10, 320, 0.5, 1.0, 0.1, 0.25)
ORDER = Order(3, 7, 40, 2)


def test_a_header_is_144_bytes_on_every_machine():
    """No padding, which a compiler chooses."""
    assert HEADER.itemsize == sum(HEADER[name].itemsize for name in HEADER.names) == 144
    assert Header._fields == HEADER.names


def test_a_header_carries_the_largest_numbers():
    header = np.zeros(1, HEADER)
    messages.pack(
        header, 0, (MAGIC, 1, messages.STOP | messages.LAST, *[2**31 - 1] * 3, *[2**63 - 1] * 3, 0.1, 0.2, 0.3, 0.4)
    )
    sent = np.frombuffer(header.tobytes(), HEADER)
    assert messages.unpack(sent)[3:] == (*[2**31 - 1] * 3, *[2**63 - 1] * 3, 0.1, 0.2, 0.3, 0.4)
    assert sent["magic"][0] == MAGIC


def test_flags_and_tags_can_be_told_apart():
    flags = [messages.STOP, messages.LAST, messages.BYE, messages.RANKS_LOST]
    assert sum(flags) == flags[0] | flags[1] | flags[2] | flags[3]
    assert messages.HEADER_TAG < transfer.WEIGHTS_TAG
    assert transfer.WEIGHTS_TAG + transfer.TAGS <= 32767  # what the standard promises


def test_a_good_answer_is_not_refused():
    assert GOOD.foreign == ORDER.unanswered(GOOD) == ""


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"magic": 255}, "magic 0xff, expected 0xa5f3ded0"),
        ({"protocol": 9}, f"protocol 9, expected {PROTOCOL}"),
        ({"flags": 1}, "flags 0x1, expected 0x2, 0x40, or of 0x30"),
    ],
)
def test_a_header_of_another_program_is_told(fields, reason):
    assert GOOD._replace(**fields).foreign == reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"client": 4}, "is from client 4, who was not asked"),
        ({"round": 6}, "answers round 6, expected 7"),
        ({"version": 41}, "started from version 41, which the client does not hold: it was sent 40"),
        ({"epochs": 3}, "has done K = 3, expected 2"),
        ({"samples": 0}, "has done 10 steps and seen 0 samples"),
        ({"steps": 0}, "has done 0 steps and seen 320 samples"),
        ({"compute_s": -1.0}, "took -1.0 s and waited 0.1 s"),
        ({"wait_s": float("inf")}, "took 1.0 s and waited inf s"),
    ],
)
def test_an_answer_to_something_else_is_told(fields, reason):
    assert ORDER.unanswered(GOOD._replace(**fields)) == f"it {reason}"


def test_a_loss_that_is_not_a_number_is_no_fault():
    """It is recorded; whether the weights are finite is for the server."""
    assert ORDER.unanswered(GOOD._replace(train_loss=float("nan"))) == ""
