"""A worker whose server dies, without one; its messages are tested between real ranks (mpi/test_wire_*.py)."""

import pytest
import torch

from asyncfeded.mpi.launcher import MPI
from asyncfeded.mpi.waiting import Backoff
from asyncfeded.wire.client_wire import ClientWire, ServerLostError
from asyncfeded.wire.messages import Order


class Dead:
    """A communicator and a request of which MPI says that the server has died."""

    def __getattr__(self, name):
        return lambda *args: self

    def Test(self, *args):  # as MPI names it
        raise MPI.Exception(MPI.ERR_OTHER)


@pytest.mark.parametrize(
    "act",
    [
        lambda wire: wire.receive(),
        lambda wire: wire.stopped(),
        lambda wire: wire.send(Order(0, 0, 0, 1), 1, 1, 0.0, 0.0, 0.0),
        lambda wire: wire.finish(),
    ],
    ids=["receive", "stopped", "send", "finish"],
)
def test_the_death_of_the_server_is_told_wherever_it_is_noticed(act):
    with pytest.raises(ServerLostError):
        act(ClientWire(Dead(), torch.zeros(3), Backoff("spin")))
