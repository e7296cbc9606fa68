"""A scaling study as Slurm arrays: submitted, run on 1, 2 and 3 nodes, gathered while one run is missing, and completed."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from conftest import run_asyncfeded

SCRIPT = Path(__file__).parents[2] / "slurm" / "scaling.sbatch"
GRID = """
clients = [1, 2, 4]
scaling = ["weak"]
ranks_per_node = [2]
rounds = 4
samples = 80
round_s = 0.02

[run]
threads = 1
task = {name = "synthetic"}
training.epochs = 1

[models.tiny]

[rules.asyncfeded]
run.rule = {name = "asyncfeded", kappa = 0.0}
"""


@pytest.fixture
def scale(slurm, own_mpi, tmp_path):
    """`asyncfeded scale` with its options, in a folder with the grid and the script, on that Slurm."""
    (tmp_path / "grid.toml").write_text(GRID)
    (tmp_path / "slurm").mkdir()
    shutil.copy(SCRIPT, tmp_path / "slurm")
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = own_mpi.env | {"SLURM_CONF": slurm.env["SLURM_CONF"], "PATH": path}

    def run(*options):
        return run_asyncfeded("scale", "grid.toml", "--output", "out", *options, cwd=tmp_path, env=env, timeout=300)

    return run


def submitted(done):
    """Number of the job by nodes, runs and ranks on each."""
    assert done.status == 0, str(done)
    found = re.findall(r"job (\d+): (\d+) runs on (\d+) node\(s\) with (\d+) ranks each", done.stderr)
    return {tuple(map(int, rest)): int(job) for job, *rest in found}


@pytest.mark.timeout(900)
def test_a_study_is_submitted_gathered_and_completed(slurm, scale, tmp_path):
    jobs = submitted(scale("--slurm", "--time=10 --cpus-per-task=2"))
    assert set(jobs) == {(1, 1, 2), (1, 2, 2), (1, 3, 2)}
    assert submitted(scale("--slurm", "--time=10 --cpus-per-task=2")) == {}  # what is queued or running is left alone
    slurm.run("scancel", jobs[1, 3, 2])
    for index, (size, job) in enumerate(jobs.items()):
        if size != (1, 3, 2):
            done = slurm.ended(f"{job}_{index}", 300)
            assert (done.state, done.status) == ("COMPLETED", 0), str(done)
            assert int(slurm.job(f"{job}_{index}")["NumNodes"]) == size[1]
    slurm.until_free()
    gathered = scale("--gather")
    assert gathered.status == 0, str(gathered)
    assert re.search(r"missing: tiny-asyncfeded-c4-r2-s1-\w+ \(--only 2\)", gathered.stderr), str(gathered)
    assert "### weak scaling, tiny (610 parameters), asyncfeded, 2 ranks per node" in gathered.stdout
    assert re.findall(r"^\| (\d) \| (\d) \| 1 of 1 \|", gathered.stdout, re.MULTILINE) == [("1", "1"), ("2", "2")]
    assert (tmp_path / "out" / "speedup.png").exists()

    (job,) = submitted(scale("--slurm", "--time=10")).values()
    done = slurm.ended(f"{job}_2", 300)
    assert (done.state, done.status) == ("COMPLETED", 0), str(done)
    slurm.until_free()
    gathered = scale("--gather", "--predict", "predict=[16]")
    assert gathered.status == 0, str(gathered)
    assert "missing" not in gathered.stderr
    assert re.findall(r"^\| (\d) \| (\d) \| 1 of 1 \|", gathered.stdout, re.MULTILINE) == [
        ("1", "1"),
        ("2", "2"),
        ("4", "3"),
    ]
    assert "### Predicted: weak scaling, tiny" in gathered.stdout


@pytest.mark.timeout(600)
def test_a_run_of_an_array_that_fails_fails_its_task(slurm, scale):
    jobs = submitted(scale("--slurm", "--time=10", "run.training.learning_rate=1e38", "clients=[1]"))
    done = slurm.ended(f"{jobs[1, 1, 2]}_0", 300)
    assert (done.state, done.status) == ("FAILED", 2), str(done)
    assert "1 of the runs failed: tiny-asyncfeded-c1-r2-" in done.said
