"""A server of several ranks: whole runs that end with the same model to the bit, whoever holds it."""

import pytest

from asyncfeded.model.kernel import CHUNK
from asyncfeded.model.slices import cut
from asyncfeded.run.slices import describe
from asyncfeded.store import record

RUN = """
seed = 3
clock = "virtual"
clients = 4
[limits]
updates = 12
[task]
name = "synthetic"
model = "mlp"
hidden = 9000
sizes_given = [40, 60, 80, 100]
[training]
epochs = 1
batch_size = 20
learning_rate = 0.01
momentum = 0.5
optimizer_state = "kept"
[heterogeneity]
round_s = [1.0, 1.3, 0.7, 2.1]
[evaluation]
every_s = 2.0
[rule]
name = "asyncfeded"
distance = "mahalanobis"
"""
"""A model of 3 chunks, and as much momentum of each client behind it: 5 chunks in a message."""


MEASURED = ("compute_s", "wait_s", "service_s")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("slices")
    (folder / "run.toml").write_text(RUN, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def whole(own_mpi, folder):
    """A run whose server is one rank."""
    assert own_mpi.train(2, "run.toml", "run_dir=whole", cwd=folder).result
    return told(folder / "whole")


def told(run_dir):
    """The bits of a run by name, but for what the wall clock measured."""
    tables = record.read_record(run_dir)
    rows = {name: tables.updates[name].tobytes() for name in tables.updates.dtype.names if name not in MEASURED}
    rows |= {name: tables.evaluations[name].tobytes() for name in tables.evaluations.dtype.names}
    return rows | {"model": (run_dir / "model.h5").read_bytes()}


def differing(one, other):
    return [name for name in one if one[name] != other[name]]


@pytest.mark.parametrize("servers", [2, 3])
def test_a_run_is_the_same_to_the_bit_on_any_number_of_server_ranks(own_mpi, folder, whole, servers):
    assert own_mpi.train(servers + 2, "run.toml", f"servers={servers}", f"run_dir={servers}", cwd=folder).result
    assert differing(told(folder / str(servers)), whole) == []


def test_a_run_is_the_same_to_the_bit_on_two_server_ranks_under_another_mpi(other_mpi, folder, whole):
    assert other_mpi.train(3, "run.toml", "servers=2", "run_dir=other", cwd=folder).result
    assert differing(told(folder / "other"), whole) == []


def test_what_each_rank_holds_is_told_and_who_holds_nothing():
    class Ranks:
        slices = cut(CHUNK + 1, 3)

    assert describe(None) == []
    assert describe(Ranks) == [
        "3 server ranks hold 262144, 1, 0 numbers of the model each",
        "1 of the server ranks hold nothing: a model is cut into pieces of 262144 numbers, and this one has 2; "
        "set servers = 2",
    ]
