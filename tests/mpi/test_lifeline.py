"""Connections between the ranks of a group, here between threads."""

import threading
from types import SimpleNamespace

import numpy as np
import pytest

from asyncfeded.mpi import lifeline
from asyncfeded.mpi.lifeline import Lifeline, own_addresses


class Ranks:
    """The communicator of a group whose ranks are threads."""

    def __init__(self, size):
        self._said, self._here, self.size = None, threading.Event(), size

    def comm(self, rank):
        return SimpleNamespace(rank=rank, size=self.size, Bcast=lambda array, root: self._tell(array, rank))

    def _tell(self, array, rank):
        if rank == 0:
            self._said = array.copy()
            self._here.set()
        assert self._here.wait(10)
        array[:] = self._said


@pytest.fixture
def connected():
    """Three ranks."""
    ranks, lines = Ranks(3), {}

    def enter(rank):
        lines[rank] = Lifeline(ranks.comm(rank))
        lines[rank].connect(10.0)

    threads = [threading.Thread(target=enter, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    yield lines
    for line in lines.values():
        line.close()


def test_the_leader_finds_out_which_rank_has_died_and_the_others_that_the_leader_has(connected):
    assert [connected[rank].lost() for rank in range(3)] == [None, None, None]
    assert connected[0].leader == ""
    assert connected[2].leader in own_addresses()
    connected[2].close()
    assert connected[0].lost() == 2
    assert connected[1].lost() is None
    connected[0].close()
    assert connected[1].lost() == 0


def test_a_stranger_does_not_take_the_place_of_a_rank(monkeypatch):
    """It knows the port, and not the secret."""
    monkeypatch.setattr(lifeline, "CONNECT_S", 0.3)
    ranks = Ranks(2)
    leader = Lifeline(ranks.comm(0))
    stranger = Lifeline(ranks.comm(1))
    stranger._meeting["secret"] = np.zeros(16, np.uint8)
    said = []

    def wait_for_it():
        try:
            leader.connect(10.0)
        except ValueError as error:
            said.append(str(error))

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    with pytest.raises(ValueError, match="it cannot connect by TCP to the first of the ranks that it works with, at "):
        stranger.connect(10.0)
    thread.join(10)
    assert said[0].startswith("1 of the 1 ranks that it works with did not connect to it")


def test_ranks_that_do_not_come_are_told(monkeypatch):
    monkeypatch.setattr(lifeline, "CONNECT_S", 0.1)
    with pytest.raises(ValueError, match=r"2 of the 2 ranks that it works with did not connect to it by TCP within 0\.1 s"):
        Lifeline(Ranks(3).comm(0)).connect(10.0)
