"""What stands in the way of a client that wants to join, before anything is connected. Whole runs: tests/faults."""

import pytest

from asyncfeded.config import load_config
from conftest import run_asyncfeded

TOML = """
task = {name = "synthetic", samples_max = 200}
late = 1
limits.updates = 30
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "run.toml").write_text(TOML)
    return tmp_path


def test_an_mpi_that_cannot_connect_says_so_before_training(other_mpi, folder):
    done = other_mpi.train(2, "run.toml", "run_dir=run", cwd=folder)
    assert done.status == 2, str(done)
    assert "late = 1, but Open MPI" in done.stderr
    assert "nobody could join; take MPICH" in done.stderr
    assert not (folder / "run").exists()


def test_an_absent_client_is_no_lost_rank_for_the_rank_that_tests(own_mpi, folder):
    """It would leave without the others, which would wait for it at the end."""
    done = own_mpi.train(3, "run.toml", "run_dir=run", "evaluator=1", "limits.updates=4", cwd=folder)
    assert done.status == 0, str(done)
    assert "2 clients on 1 ranks of 1 host(s)" in done.stderr


def test_where_no_run_goes_on_nobody_joins_or_leaves(own_mpi, folder):
    (folder / "run").mkdir()
    (folder / "run" / "config.toml").write_text(TOML + "clients = 2\n")
    for command in ("join", "leave"):
        done = run_asyncfeded(command, "run", cwd=folder, env=own_mpi.env)
        assert done.status == 2, str(done)
        assert "run: no run goes on here that clients may join" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["clock=virtual", "clients=4"], "late = 1 and clock = virtual exclude each other"),
        (["faults.on_death=reassign"], "late = 1 and faults.on_death = reassign exclude each other"),
    ],
)
def test_what_needs_a_rank_for_every_client_excludes_late_ones(folder, overrides, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_config(folder / "run.toml", overrides)
