"""What is submitted to Slurm, and that nothing is submitted twice. Here sbatch and squeue are scripts of a few lines."""

import json
from pathlib import Path

import pytest

from asyncfeded.studies.scaling import slurm
from asyncfeded.studies.scaling.grid import expand, load_scaling_grid

GRID = """
clients = [1, 2]
scaling = ["strong"]
ranks_per_node = [2]
rounds = 4
[run]
task = {name = "synthetic"}
[models.tiny]
[rules.asyncfeded]
"""
SBATCH = """#!/bin/sh
echo "$@" >> submitted
wc -l < submitted
"""
SQUEUE = """#!/bin/sh
[ -e broken ] && { echo no controller >&2; exit 1; }
cat queue
"""


@pytest.fixture
def submit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE), ("grid.toml", GRID), ("queue", "")):
        Path(name).write_text(text)
        Path(name).chmod(0o755)
    Path("slurm").mkdir()
    slurm.SCRIPT.touch()
    Path("out", "runs").mkdir(parents=True)
    runs = list(expand(load_scaling_grid(Path("grid.toml"))))
    return lambda: slurm.submit(runs, Path("grid.toml"), Path("out"), [], "--time=10")


def arrays():
    return [line.partition("--array=")[2].split()[0] for line in Path("submitted").read_text().splitlines()]


def test_what_is_queued_or_running_is_not_submitted_again(submit):
    both = ["job 1: 1 runs on 1 node(s) with 2 ranks each", "job 2: 1 runs on 2 node(s) with 2 ranks each"]
    assert submit() == both
    Path("queue").write_text("1_0\n2_1\n9_0\n")
    assert submit() == ["2 runs are queued or running already: job 1, 2"]
    assert arrays() == ["0", "1"]
    Path("queue").write_text("2_1\n")
    again = ["1 runs are queued or running already: job 2", "job 3: 1 runs on 1 node(s) with 2 ranks each"]
    assert submit() == again
    Path("queue").write_text("2_1\n3_0\n")
    assert submit() == ["2 runs are queued or running already: job 2, 3"]
    assert arrays() == ["0", "1", "0"]


def test_runs_are_not_submitted_where_nobody_knows_what_is_queued(submit):
    submit()
    Path("broken").touch()
    with pytest.raises(ValueError, match=r"squeue .* failed: no controller"):
        submit()
    Path("out", "submitted.json").write_text("{")
    with pytest.raises(ValueError, match=r"submitted\.json: cannot be read .*; remove it when no run is in the queue"):
        submit()
    assert arrays() == ["0", "1"]


def test_a_run_that_is_done_is_forgotten(submit):
    submit()
    (name,) = (name for name, task in json.loads(Path("out", "submitted.json").read_text()).items() if task == "1_0")
    Path("out", "runs", name).mkdir()
    Path("out", "runs", name, "result.json").touch()
    Path("queue").write_text("1_0\n")
    assert submit() == ["job 3: 1 runs on 2 node(s) with 2 ranks each"]
