"""The wire: what needs no second rank, and the tests of mpi/ on real ranks, in a job of their own."""

import inspect
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from asyncfeded import transfer, wire
from conftest import FakeWire, run

ROOT = Path(__file__).parent.parent


@pytest.mark.timeout(240)
@pytest.mark.parametrize("ranks", [2, 4])
def test_messages_between_ranks(mpi, ranks):
    pytest_mpi = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", "--timeout=60", "tests/mpi"]
    done = run(mpi.command((ranks, pytest_mpi)), ROOT, mpi.env, timeout=200)
    assert done.status == 0, str(done)
    passed = re.findall(r"(\d+) passed", done.stdout)
    assert len(passed) == ranks, str(done)
    assert min(map(int, passed)) >= 20, str(done)


def test_a_header_is_64_bytes_on_every_machine():
    """No padding, which a compiler chooses."""
    assert wire.HEADER.itemsize == sum(wire.HEADER[name].itemsize for name in wire.HEADER.names) == 64


def test_a_header_carries_the_largest_numbers():
    header = np.zeros(1, wire.HEADER)
    header[0] = (wire.MAGIC, 1, wire.STOP | wire.LAST, *[2**31 - 1] * 4, 2**63 - 1, 2**63 - 1, 0.1, 0.2, 0.3)
    sent = np.frombuffer(header.tobytes(), wire.HEADER)
    assert sent[0].item()[3:] == (*[2**31 - 1] * 4, 2**63 - 1, 2**63 - 1, 0.1, 0.2, 0.3)
    assert sent["magic"][0] == wire.MAGIC


def test_flags_can_be_told_apart():
    assert wire.STOP & wire.LAST == 0
    assert wire.HEADER_TAG != transfer.WEIGHTS_TAG


@pytest.mark.parametrize("kind", [FakeWire, wire.ServerWire])
def test_what_the_server_needs_is_there_with_the_same_parameters(kind):
    needed = [name for name in vars(wire.Wire) if not name.startswith("_")]
    assert sorted(needed) == ["next", "now", "pause", "release", "reply", "stop"]
    for name in needed:
        assert list(inspect.signature(getattr(kind, name)).parameters) == list(
            inspect.signature(getattr(wire.Wire, name)).parameters
        )
