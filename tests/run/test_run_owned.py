"""Two jobs and one folder, and a job whose folder is taken away."""

import json

import pytest

from asyncfeded.config import read_toml
from asyncfeded.store import record
from asyncfeded.store.ownership import NAME
from conftest import Job, run_asyncfeded
from run.lives import contents

QUICK = ("threads=1", "task.name=synthetic", "training.epochs=1", "rule.epochs_max=2", "wait=yield")
ENDLESS = (*QUICK, "limits.updates=0", "limits.seconds=1000", "checkpoint.every_updates=5", "heterogeneity.round_s=[0.02]")


def train(folder, mpi, *overrides):
    return Job(folder, mpi.env, "train", "run.toml", "--ranks", 2, *overrides)


def is_refused(run_dir, status, said, why="{} is in use by process"):
    """In one sentence."""
    assert status == 2, said
    sentences = [line for line in said.splitlines() if line.startswith("asyncfeded: ")]
    assert len(sentences) == 1, said
    assert why.format(run_dir) in sentences[0]
    assert "Traceback" not in said


def test_of_two_runs_that_start_in_one_folder_one_has_it_and_the_other_is_refused(own_mpi, folder):
    (folder / "second").mkdir()
    mine = (*QUICK, f"run_dir={folder / 'run'}")
    with train(folder, own_mpi, *mine, "seed=1") as one:
        (folder / "second" / "run.toml").write_text((folder / "run.toml").read_text())
        with train(folder / "second", own_mpi, *mine, "seed=2") as two:
            ended = [one.end(), two.end()]
    (seed,) = (number for number, (status, _) in enumerate(ended, 1) if status == 0)
    over = "holds a run already" in ended[seed % 2][1]  # on a loaded machine one may end before the other begins
    is_refused(folder / "run", *ended[seed % 2], *["run_dir = '{}' holds a run already"] * over)
    files = ["config.toml", "log.txt", "model.h5", "record.h5", "result.json"]
    assert sorted(path.name for path in (folder / "run").iterdir()) == files
    assert read_toml(folder / "run" / "config.toml")["seed"] == seed
    assert f"\nseed = {seed}\n" in f"\n{record.read_record(folder / 'run').attributes['config']}"
    updates = json.loads((folder / "run" / "result.json").read_text())["updates"]
    assert len(record.read_record(folder / "run").updates) == updates == 12


@pytest.fixture
def going_on(own_mpi, folder):
    """A run that would go on for long, in the folder `run`; it has written a checkpoint."""
    with train(folder, own_mpi, *ENDLESS, "run_dir=run") as job:
        job.until(lambda: list((folder / "run").glob("checkpoints/checkpoint-*.h5")))
        yield job


def test_a_run_that_goes_on_is_neither_resumed_nor_begun_anew(own_mpi, folder, going_on):
    for command in (("resume", "run", "limits.seconds=1"), ("train", "run.toml", "--ranks", 2, *QUICK, "run_dir=run")):
        done = run_asyncfeded(*command, cwd=folder, env=own_mpi.env)
        is_refused("run", done.status, done.stderr)
    assert going_on.process.poll() is None
    before = len(record.read_record(folder / "run").updates)
    going_on.until(lambda: len(record.read_record(folder / "run").updates) > before)


def test_a_run_whose_folder_is_renamed_writes_nothing_more_into_it(folder, going_on):
    (folder / "run").rename(folder / "kept")
    assert (folder / "kept" / NAME).exists()
    (folder / "run").mkdir()
    going_on.until(lambda: "run is not this job's any more: it was removed or renamed" in going_on.said())
    before = contents(folder / "kept")
    going_on.process.terminate()
    _, said = going_on.end()
    assert "model.h5 cannot be written" in said
    assert contents(folder / "kept") == before
    assert list((folder / "run").iterdir()) == []
