"""Ranks are killed inside a client of several ranks."""

import json
import os
import signal

from asyncfeded.store import record
from conftest import Job, is_dead, run_asyncfeded
from faults.conftest import VIRTUAL, log, updates_of


def test_a_client_is_lost_with_any_of_its_ranks_and_the_others_of_it_leave(mpi, jobs):
    """First one that is no leader, then the leader of the other client. Where MPI reports no death, the server waits."""
    run_dir = jobs / "run"
    command = ("train", "run.toml", "--ranks", 5, "run_dir=run", "ranks_per_client=2", "faults.patience_s=5")
    with Job(jobs, mpi.env, *command) as job:
        job.until(lambda: min(updates_of(run_dir, client) for client in range(2)) > 2)
        ranks = job.ranks()
        os.kill(ranks[2], signal.SIGKILL)
        job.until(lambda: is_dead(ranks[1]))
        before = updates_of(run_dir, 1)
        job.until(lambda: updates_of(run_dir, 1) > before + 3)
        os.kill(ranks[3], signal.SIGKILL)
        status, said = job.end()
    assert status != 0, said
    assert "rank 1 leaves: group 0: " in said
    assert is_dead(ranks[4])
    assert "asyncfeded resume run" in said
    updates = record.read_record(run_dir).updates
    assert updates["version"].tolist() == list(range(1, len(updates) + 1))


def test_clients_that_move_to_another_group_leave_the_result_as_it_was_to_the_bit(own_mpi, jobs):
    """On the virtual clock; a rank of one group of two is killed, and the other group trains its clients too."""
    settings = (*VIRTUAL, "ranks_per_client=2", "faults.patience_s=5")
    whole = run_asyncfeded("train", "run.toml", "--ranks", 3, "run_dir=whole", *settings, cwd=jobs, env=own_mpi.env)
    assert whole.status == 0, str(whole)
    with Job(jobs, own_mpi.env, "train", "run.toml", "--ranks", 5, "run_dir=run", *settings) as job:
        job.until(lambda: updates_of(jobs / "run", 1) > 1)
        os.kill(job.ranks()[4], signal.SIGKILL)
        status, said = job.end()
    assert status == 0, said
    assert "its clients move to other ranks" in log(jobs / "run"), said
    assert json.loads((jobs / "run" / "result.json").read_text())["model_sha256"] == whole.result["model_sha256"]
