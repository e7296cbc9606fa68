"""Clients are killed one after the other."""

import json
import os
import random
import signal

from asyncfeded.store import record
from conftest import Job, run_asyncfeded
from faults.conftest import VIRTUAL, goes_on, log, updates_of

CLIENTS = 4


def test_clients_are_killed_until_one_is_left_and_then_that_one(mpi, jobs):
    """The others never notice. Where MPI reports no death, a dead client is one that is silent for too long."""
    run_dir = jobs / "run"
    command = ("train", "run.toml", "--ranks", 1 + CLIENTS, "run_dir=run", f"clients={CLIENTS}", "faults.patience_s=5")
    with Job(jobs, mpi.env, *command) as job:
        job.until(lambda: min(updates_of(run_dir, client) for client in range(CLIENTS)) > 2)
        order = random.sample(range(CLIENTS), CLIENTS)
        for killed, client in enumerate(order, 1):
            os.kill(job.ranks()[1 + client], signal.SIGKILL)
            for other in order[killed:]:
                before = updates_of(run_dir, other)
                job.until(lambda other=other, before=before: updates_of(run_dir, other) > before + 5)
        status, said = job.end()
    assert status != 0, said
    assert "asyncfeded resume run" in said
    updates = record.read_record(run_dir).updates
    assert updates["version"].tolist() == list(range(1, len(updates) + 1))
    goes_on(mpi, jobs, lost=1)


def test_clients_that_move_leave_the_result_as_it_was_to_the_bit(own_mpi, jobs):
    """On the virtual clock, a worker of two being killed."""
    settings = (*VIRTUAL, "limits.updates=100", "faults.patience_s=5")
    whole = run_asyncfeded("train", "run.toml", "--ranks", 3, "run_dir=whole", *settings, cwd=jobs, env=own_mpi.env)
    assert whole.status == 0, str(whole)
    with Job(jobs, own_mpi.env, "train", "run.toml", "--ranks", 3, "run_dir=run", *settings) as job:
        job.until(lambda: min(updates_of(jobs / "run", client) for client in range(4)) > 1)  # or it is waited for long
        os.kill(job.ranks()[2], signal.SIGKILL)
        status, said = job.end()
    assert status == 0, said
    assert "its clients move to other ranks" in log(jobs / "run"), said
    assert json.loads((jobs / "run" / "result.json").read_text())["model_sha256"] == whole.result["model_sha256"]
