"""The sizes on which models are cut; the transfers themselves are tested on real ranks, in mpi/test_wire_*.py."""

from asyncfeded.model import kernel
from asyncfeded.wire import transfer


def test_a_message_is_a_part_that_the_kernel_can_take_alone():
    """Sums of parts add up to the bit only where a part begins at a multiple of the kernel's chunk."""
    assert transfer.CHUNK % kernel.CHUNK == 0
    assert transfer.UNDER_WAY >= 2
