"""Clients are killed one after the other."""

import os
import random
import signal

from asyncfeded import record
from conftest import Job
from faults.conftest import goes_on, updates_of

CLIENTS = 4


def test_clients_are_killed_until_one_is_left_and_then_that_one(mpi, jobs):
    """The others never notice. Where MPI reports no death, a dead client is one that is silent for too long."""
    run_dir = jobs / "run"
    command = ("train", "run.toml", "--ranks", 1 + CLIENTS, "run_dir=run", f"clients={CLIENTS}", "faults.patience_s=1")
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
    updates = record.read(run_dir).updates
    assert updates["version"].tolist() == list(range(1, len(updates) + 1))
    goes_on(mpi, jobs, lost=1)
