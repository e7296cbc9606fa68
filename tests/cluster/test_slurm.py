"""Runs on a real Slurm: every way to start one, and the scripts of slurm/."""

import sys
from pathlib import Path

import numpy as np
import pytest

from asyncfeded import record

ASYNCFEDED = Path(sys.executable).with_name("asyncfeded")

TOML = """
device = "cpu"
threads = 1
[limits]
updates = 12
[task]
name = "synthetic"
[training]
epochs = 1
[rule]
epochs_max = 2
"""


@pytest.fixture
def folder(tmp_path):
    """A folder with run.toml."""
    (tmp_path / "run.toml").write_text(TOML)
    return tmp_path


def is_whole(run_dir, updates, clients):
    """Whether a run's record has no gap: every version once, every client's rounds in order."""
    rows = record.read(run_dir).updates
    assert rows["version"].tolist() == list(range(1, updates + 1))
    assert set(rows["client"].tolist()) <= set(range(clients))
    assert (np.diff(rows["time_s"]) >= 0).all()
    for client in range(clients):
        rounds = rows["round"][rows["client"] == client]
        assert rounds.tolist() == list(range(len(rounds)))
    return True


# --- every way to start one


def pmi(mpi):
    """What srun speaks with an MPI."""
    return "pmix" if mpi.vendor.startswith("Open MPI") else "pmi2"


def test_srun_starts_a_run(slurm, mpi, folder):
    line = f"srun --mpi={pmi(mpi)} {ASYNCFEDED} train run.toml run_dir=run"
    done = slurm.ended(slurm.submit(folder, "-N3", "-n3", f"--wrap={line}", env=mpi.env))
    assert (done.state, done.status) == ("COMPLETED", 0), str(done)
    assert is_whole(folder / "run", 12, 2)
    assert f"2 clients on 2 ranks of 1 host(s), 1 thread(s) each, {mpi.vendor}" in done.said


def test_mpiexec_in_an_allocation_starts_a_run(slurm, mpi, folder):
    line = f"{ASYNCFEDED} train run.toml run_dir=run --ranks 3"
    done = slurm.ended(slurm.submit(folder, "-N3", "-n3", f"--wrap={line}", env=mpi.env))
    assert (done.state, done.status) == ("COMPLETED", 0), str(done)
    assert is_whole(folder / "run", 12, 2)


def test_srun_that_does_not_speak_with_the_mpi_is_recognised(slurm, own_mpi, folder):
    line = f"srun --mpi=none {ASYNCFEDED} train run.toml run_dir=run"
    done = slurm.ended(slurm.submit(folder, "-n3", f"--wrap={line}", env=own_mpi.env))
    assert (done.state, done.status) == ("FAILED", 2), str(done)
    assert done.said.count("asyncfeded: srun started 3 ranks, but mpi4py uses ") == 1, str(done)
    assert "under srun, with an --mpi=... that the library supports (srun --mpi=list)" in done.said
