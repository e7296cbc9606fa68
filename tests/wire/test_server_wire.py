"""The wire: what needs no second rank, and the tests of mpi/ on real ranks, in a job of their own."""

import inspect
import re
import sys
from pathlib import Path

import pytest

from asyncfeded.wire import messages
from asyncfeded.wire.server_wire import ServerWire
from conftest import FakeWire, run

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("ranks", [2, 4])
def test_messages_between_ranks(mpi, ranks):
    pytest_mpi = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", "--timeout=60", "tests/mpi"]
    done = run(mpi.command((ranks, pytest_mpi)), ROOT, mpi.env, timeout=200)
    assert done.status == 0, str(done)
    passed = re.findall(r"(\d+) passed", done.stdout)
    assert len(passed) == ranks, str(done)
    assert min(map(int, passed)) >= 20, str(done)


@pytest.mark.parametrize("kind", [FakeWire, ServerWire])
def test_what_the_server_needs_is_there_with_the_same_parameters(kind):
    needed = [name for name in vars(messages.Wire) if not name.startswith("_")]
    assert sorted(needed) == ["next", "now", "pause", "release", "reply", "stop"]
    for name in needed:
        parameters = list(inspect.signature(getattr(messages.Wire, name)).parameters)
        assert list(inspect.signature(getattr(kind, name)).parameters)[: len(parameters)] == parameters
