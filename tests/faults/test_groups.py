"""Ranks inside a client of several ranks are stopped, and killed."""

import os
import re
import signal

from asyncfeded.store import record
from conftest import Job, is_dead, run_asyncfeded
from faults.conftest import VIRTUAL, log, updates_of


def test_a_client_is_lost_with_any_of_its_ranks_and_the_others_of_it_leave(mpi, jobs):
    """A rank that is no leader is stopped, so that its client is silent, and goes on; then it is killed. Then a leader is.

    Where MPI reports no death, the leader that is left tells the server of the first; the second falls silent.
    """
    run_dir = jobs / "run"
    command = ("train", "run.toml", "--ranks", 5, "run_dir=run", "ranks_per_client=2", "faults.patience_s=3")
    with Job(jobs, mpi.env, *command) as job:
        job.until(lambda: min(updates_of(run_dir, client) for client in range(2)) > 2)
        ranks = job.ranks()
        os.kill(ranks[2], signal.SIGSTOP)
        job.until(lambda: "goes on without client 0: rank 1 was silent for " in log(run_dir))
        before = [updates_of(run_dir, client) for client in range(2)]
        job.until(lambda: updates_of(run_dir, 1) > before[1] + 3)
        os.kill(ranks[2], signal.SIGCONT)
        job.until(lambda: updates_of(run_dir, 0) > before[0] + 3)
        os.kill(ranks[2], signal.SIGKILL)
        job.until(lambda: is_dead(ranks[1]))
        job.until(lambda: log(run_dir).count("goes on without client 0: ") == 2)
        before = updates_of(run_dir, 1)
        job.until(lambda: updates_of(run_dir, 1) > before + 3)
        os.kill(ranks[3], signal.SIGKILL)
        status, said = job.end()
    assert status != 0, said
    assert "rank 1 leaves: group 0: " in said
    told = "rank 1 has left: a rank of its client has died|MPI reports that rank 2 has died"
    assert re.search(f"goes on without client 0: ({told})", log(run_dir))
    assert is_dead(ranks[4])
    assert "asyncfeded resume run" in said
    updates = record.read_record(run_dir).updates
    assert updates["version"].tolist() == list(range(1, len(updates) + 1))


def test_clients_that_move_to_another_group_leave_the_result_as_it_was_to_the_bit(own_mpi, jobs):
    """On the virtual clock; a rank of one group of two is killed, and the other group trains its clients too.

    The run ends early and is resumed, and all of it is repeated from its record.
    """
    settings = (*VIRTUAL, "limits.updates=60", "ranks_per_client=2", "faults.patience_s=5")
    whole = run_asyncfeded("train", "run.toml", "--ranks", 3, "run_dir=whole", *settings, cwd=jobs, env=own_mpi.env)
    assert whole.status == 0, str(whole)
    early = ("--ranks", 5, "run_dir=run", *settings, "limits.updates=45")
    with Job(jobs, own_mpi.env, "train", "run.toml", *early) as job:
        job.until(lambda: min(updates_of(jobs / "run", client) for client in range(4)) > 1)  # or it is waited for long
        os.kill(job.ranks()[4], signal.SIGKILL)
        status, said = job.end()
    assert status == 0, said
    assert "its clients move to other ranks" in log(jobs / "run"), said
    resumed = run_asyncfeded("resume", "run", "limits.updates=60", "--ranks", 3, cwd=jobs, env=own_mpi.env)
    assert resumed.result["model_sha256"] == whole.result["model_sha256"], str(resumed)
    repeated = run_asyncfeded("replay", "run", "--ranks", 5, cwd=jobs, env=own_mpi.env)
    assert repeated.result["model_sha256"] == whole.result["model_sha256"], str(repeated)
