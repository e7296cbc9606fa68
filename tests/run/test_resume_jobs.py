"""Going on from a checkpoint, in real jobs that were killed or stopped."""

import json
import os
import random
import signal
import time

import numpy as np
import pytest

from asyncfeded.store import record
from asyncfeded.store.checkpoint import newest
from conftest import Job, run_asyncfeded, same_rows
from run.lives import contents, names, names_of

TOML = """
clock = "virtual"
clients = 4
limits.updates = 40
checkpoint.every_updates = 5
evaluation.every_s = 1.0
heterogeneity.error_probability = 0.2
[task]
name = "synthetic"
model = "mlp"
samples_max = 400
[training]
epochs = 1
optimizer = "adamw"
optimizer_state = "kept"
learning_rate = 0.003
schedule = "cosine"
schedule_length = 60
warmup = 3
clip_norm = 1.0
accumulate = 2
[rule]
epochs_max = 2
"""


@pytest.fixture
def jobs(tmp_path):
    (tmp_path / "run.toml").write_text(TOML)
    return tmp_path


def test_a_job_killed_at_any_time_goes_on_with_other_ranks_to_the_same_end(own_mpi, jobs):
    """It would train for ever: it cannot end before it is killed, however busy the machine."""
    with Job(jobs, own_mpi.env, "train", "run.toml", "--ranks", 3, "run_dir=run", "limits.updates=1000000") as job:
        job.until(lambda: len(names(jobs / "run")) == 2)
        time.sleep(random.random())
        job.kill()
    assert not (jobs / "run" / "result.json").exists()
    limit = f"limits.updates={newest(jobs / 'run').snapshot.updates + 20}"
    expected = own_mpi.train(3, "run.toml", "run_dir=whole", limit, cwd=jobs).result
    done = run_asyncfeded("resume", "run", "--ranks", 4, limit, cwd=jobs, env=own_mpi.env)
    assert done.status == 0, str(done)
    assert done.result["model_sha256"] == expected["model_sha256"], str(done)
    assert same_rows(jobs / "run", jobs / "whole", "share")  # of a limit


def test_on_the_wall_clock_a_run_is_kept_stopped_continued_and_replayed(own_mpi, jobs):
    """SIGUSR1 and SIGTERM go to mpiexec, which passes them on to all ranks."""
    if own_mpi.vendor.startswith("Open MPI"):
        pytest.skip("Open MPI's mpiexec kills its ranks half a second after it got SIGTERM")
    wall = ("clock=wall", "clients=2", "checkpoint.every_updates=0", "limits.updates=1000000", "run_dir=run")
    wall += ("training.schedule_over=run", "training.schedule_length=0")
    with Job(jobs, own_mpi.env, "train", "run.toml", "--ranks", 3, *wall) as job:
        job.until(lambda: (jobs / "run" / "log.txt").exists() and "accuracy" in (jobs / "run" / "log.txt").read_text())
        assert names(jobs / "run") == []
        os.kill(job.process.pid, signal.SIGUSR1)
        job.until(lambda: len(names(jobs / "run")) == 1)
        os.kill(job.process.pid, signal.SIGTERM)
        status, said = job.end()
    assert status == 75, said
    first = json.loads((jobs / "run" / "result.json").read_text())
    assert first["stopped"] == "interrupted by a signal"
    assert names(jobs / "run")[-1:] == names_of(first["updates"])
    limit = first["updates"] + 10
    done = run_asyncfeded("resume", "run", f"limits.updates={limit}", cwd=jobs, env=own_mpi.env)
    assert done.status == 0, str(done)
    assert (done.result["updates"], len(record.read_record(jobs / "run").updates)) == (limit, limit)
    assert done.result["seconds"] > first["seconds"]
    updates = record.read_record(jobs / "run").updates
    assert updates["version"].tolist() == list(range(1, limit + 1))
    assert (np.diff(updates["time_s"]) >= 0).all()
    for client in range(2):
        rounds = updates["round"][updates["client"] == client]
        assert rounds.tolist() == list(range(len(rounds)))
    again = run_asyncfeded("replay", "run", cwd=jobs, env=own_mpi.env)
    assert again.result["model_sha256"] == done.result["model_sha256"], str(again)


def test_resume_is_refused_where_there_is_no_run(own_mpi, tmp_path):
    done = run_asyncfeded("resume", "nowhere", cwd=tmp_path)
    assert done.status == 2
    assert done.stderr == "asyncfeded: nowhere/record.h5: no such file; give the folder of a run (run_dir)\n"


def test_a_refusal_of_resume_is_told_once_and_leaves_the_run_as_it_is(own_mpi, jobs):
    assert own_mpi.train(2, "run.toml", "limits.updates=6", "run_dir=run", cwd=jobs).status == 0
    before = contents(jobs)
    for override, sentence in (
        ("seed=3", "a run cannot go on with another seed (0 in the run, 3 now)"),
        ("run_dir=other", "run_dir = 'other': a run goes on in its own folder, run; leave run_dir out, or copy the folder"),
    ):
        done = run_asyncfeded("resume", "run", "limits.updates=9", override, "--ranks", 3, cwd=jobs, env=own_mpi.env)
        assert done.status == 2, str(done)
        assert done.stderr.count(sentence) == 1, str(done)
        assert contents(jobs) == before


def test_folders_that_look_like_numbers_are_taken_by_their_names(own_mpi, jobs):
    """TOML reads 8123_4 as 81234."""
    assert own_mpi.train(2, "run.toml", "limits.updates=6", "run_dir=81234", cwd=jobs).status == 0
    other = contents(jobs / "81234")
    assert own_mpi.train(2, "run.toml", "limits.updates=6", "run_dir=8123_4", "seed=1", cwd=jobs).status == 0
    for command in (("resume", "8123_4", "limits.updates=9"), ("replay", "8123_4", "--output", "1e3")):
        done = run_asyncfeded(*command, cwd=jobs, env=own_mpi.env)
        assert (done.status, done.result["updates"]) == (0, 9), str(done)
    assert sorted(path.name for path in jobs.iterdir() if path.is_dir()) == ["1e3", "81234", "8123_4"]
    assert contents(jobs / "81234") == other
