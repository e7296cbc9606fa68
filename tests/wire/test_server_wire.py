"""The wire: what needs no second rank, and the tests of mpi/ on real ranks, in a job of their own."""

import inspect
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from asyncfeded.testing import FakeWire
from asyncfeded.wire import messages
from asyncfeded.wire.server_wire import ServerWire
from conftest import run

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(240)
@pytest.mark.parametrize("ranks", [2, 4])
def test_messages_between_ranks(mpi, ranks, tmp_path):
    """Each rank reports in a file of its own: on the standard output they may write into each other's lines."""
    pytest_mpi = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--color=no", "--timeout=60", "tests/mpi"]
    reports = [tmp_path / f"{rank}.xml" for rank in range(ranks)]
    done = run(mpi.command(*((1, [*pytest_mpi, f"--junit-xml={report}"]) for report in reports)), ROOT, mpi.env, timeout=200)
    assert done.status == 0, str(done)
    for report in reports:
        (suite,) = ElementTree.parse(report).getroot()
        tests, *others = (int(suite.get(name)) for name in ("tests", "failures", "errors", "skipped"))
        assert tests - sum(others) >= 20, str(done)


@pytest.mark.parametrize("kind", [FakeWire, ServerWire])
def test_what_the_server_needs_is_there_with_the_same_parameters(kind):
    needed = [name for name in vars(messages.Wire) if not name.startswith("_")]
    assert sorted(needed) == ["next", "now", "pause", "release", "reply", "stop"]
    for name in needed:
        parameters = list(inspect.signature(getattr(messages.Wire, name)).parameters)
        assert list(inspect.signature(getattr(kind, name)).parameters)[: len(parameters)] == parameters
