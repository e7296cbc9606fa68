"""A server of several ranks: whole runs that end with the same model to the bit, whoever holds it."""

import pytest

from asyncfeded.model.kernel import CHUNK
from asyncfeded.model.slices import cut
from asyncfeded.run.slices import describe
from run.sliced import RUN, differing, told


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


@pytest.mark.parametrize("servers", [2, 3, 4])
def test_a_run_is_the_same_to_the_bit_on_any_number_of_server_ranks(own_mpi, folder, whole, servers):
    """And on three with bases on disk, where base and update of 3 of the 4 clients are in memory, and with checkpoints."""
    disk = ("bases=disk", "bases_dir=.", "bases_gb=0.013", "checkpoint.every_updates=2") if servers == 3 else ()
    assert own_mpi.train(servers + 2, "run.toml", f"servers={servers}", *disk, f"run_dir={servers}", cwd=folder).result
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
