"""Clients join a run that goes on, leave it, and are killed while they do; the others never notice."""

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from asyncfeded.store import record
from asyncfeded.store.attendance import attendance
from conftest import Job, run_asyncfeded
from faults.conftest import log, stopped, updates_of


@pytest.fixture
def joining(own_mpi, jobs):
    """Starts `asyncfeded join run`."""
    if "MPICH" not in own_mpi.vendor:
        pytest.skip(f"{own_mpi.vendor} cannot connect jobs")
    started = []

    def join():
        (jobs / f"client{len(started)}").mkdir()
        started.append(Job(jobs / f"client{len(started)}", own_mpi.env, "join", jobs / "run"))
        return started[-1]

    yield join
    for job in started:
        job.__exit__()


def test_a_client_that_is_killed_while_its_update_waits_leaves_the_server_alive(own_mpi, jobs, joining):
    """The server is stopped meanwhile; when it goes on, it finds an announced model, and nobody to read it from."""
    run_dir, settings = jobs / "run", ("clients=2", "late=1", "task.hidden=500")
    with Job(jobs, own_mpi.env, "train", "run.toml", "--ranks", 2, "run_dir=run", *settings) as job:
        job.until(lambda: updates_of(run_dir, 0) > 2)
        guest = joining()
        job.until(lambda: updates_of(run_dir, 1) > 2)
        server, (pid,) = job.ranks()[0], guest.ranks().values()
        os.kill(server, signal.SIGSTOP)
        job.until(lambda: stopped(server))
        job.until(lambda: idle(pid))  # it has sent
        os.kill(pid, signal.SIGKILL)
        os.kill(server, signal.SIGCONT)
        job.until(lambda: "goes on without client 1: its process has ended" in log(run_dir))
        before = updates_of(run_dir, 0)
        job.until(lambda: updates_of(run_dir, 0) > before + 5)


def idle(pid):
    """Whether a process has used at most 30 ms of processor time in half a second."""

    def used():
        return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]))

    before = used()
    time.sleep(0.5)
    return used() - before <= 3


def test_clients_join_leave_and_are_killed_and_the_run_replays_to_the_same_bit(own_mpi, jobs, joining):
    run_dir, settings = jobs / "run", ("clients=3", "late=2", "faults.patience_s=5")
    with Job(jobs, own_mpi.env, "train", "run.toml", "--ranks", 2, "run_dir=run", *settings) as job:
        job.until(lambda: updates_of(run_dir, 0) > 2)
        began = time.monotonic()
        guests = [joining(), joining()]  # at once: they queue
        job.until(lambda: min(updates_of(run_dir, client) for client in (1, 2)) > 2)
        took_s = time.monotonic() - began
        unlucky = joining()  # it is refused, since nobody is absent, or it takes the place of the one that leaves
        assert run_asyncfeded("leave", run_dir, "1", cwd=jobs, env=own_mpi.env).status == 0
        job.until(lambda: "goes on without client 1: it has left" in log(run_dir))
        job.until(lambda: 0 in [guest.process.poll() for guest in guests])
        stayed = next(guest for guest in guests if guest.process.poll() is None)
        time.sleep(random.uniform(0, 0.8) * took_s)  # what it does then: it starts, it agrees, it loads
        unlucky.kill()
        for pid in stayed.ranks().values():
            os.kill(pid, signal.SIGKILL)
        job.until(lambda: "goes on without client 2: its process has ended" in log(run_dir))
        before = updates_of(run_dir, 0)
        job.until(lambda: updates_of(run_dir, 0) > before + 5)
        job.process.send_signal(signal.SIGTERM)
        status, said = job.end()
        assert status == 75, said
    kinds = [(row["kind"].decode(), int(row["client"])) for row in attendance(record.read_record(run_dir).events)]
    assert sorted(kinds[:4]) == [("absent", 1), ("absent", 2), ("joined", 1), ("joined", 2)]
    assert kinds[4] == ("left", 1)
    assert ("lost", 2) in kinds
    done = run_asyncfeded("replay", "run", "--ranks", 2, cwd=jobs, env=own_mpi.env)
    assert done.status == 0, str(done)
    assert done.result["model_sha256"] == json.loads((run_dir / "result.json").read_text())["model_sha256"]
    assert "client 1 has joined: " in run_asyncfeded("info", "run", cwd=jobs).stdout
