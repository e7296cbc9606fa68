"""A job is asked to stop, or killed, before its first update."""

import json
import os
import signal

import pytest

from asyncfeded.run import RESUMABLE
from asyncfeded.store import record
from conftest import Job, run_asyncfeded
from faults.conftest import broken, log, names
from run.lives import names_of

WAITING = """
import time
from asyncfeded.tasks.synthetic import Synthetic

def wait_in(name):
    real = getattr(Synthetic, name)
    def waiting(*arguments):
        open(f"{name}-{RANK}", "w").close()
        while not os.path.exists("go"):
            time.sleep(0.01)
        return real(*arguments)
    setattr(Synthetic, name, waiting)

for name in WAITS.get(RANK, ()):
    wait_in(name)
"""
"""A rank waits in a method of its task, for a file `go`."""
ASKED = "a signal has asked the run to stop before its training began; the same command begins it again"


@pytest.fixture
def waiting(mpi, jobs):
    """Starts run.toml on 3 ranks that wait: WAITS, by rank, names methods of the task. Comes back when they are there."""
    started = []

    def start(waits, *overrides):
        code = f"WAITS = {waits}\n{WAITING}"
        job = Job(jobs, mpi.env, command=broken(mpi, jobs, code, *overrides))
        started.append(job)
        job.until(lambda: all((jobs / f"{name}-{rank}").exists() for rank, names in waits.items() for name in names))
        return job

    yield start
    for job in started:
        job.__exit__()


@pytest.mark.parametrize(
    ("whom", "number"), [("all", signal.SIGTERM), ("launcher", signal.SIGINT), ("one that loads", signal.SIGTERM)]
)
def test_a_job_that_is_asked_to_stop_while_it_loads_leaves_nothing_and_begins_again(mpi, jobs, waiting, whom, number):
    """Open MPI's launcher gives the ranks half a second."""
    job = waiting({2: ["client_data"]})
    ranks = job.ranks()
    for pid in {"all": ranks.values(), "launcher": [job.process.pid], "one that loads": [ranks[2]]}[whom]:
        os.kill(pid, number)
    status, said = job.end()
    if not (mpi.vendor.startswith("Open MPI") and whom == "launcher"):
        assert status == RESUMABLE, said
        assert said.count(ASKED) == 1, said
        assert "Traceback" not in said
        assert not (jobs / "run").exists()
    if whom == "all":
        done = mpi.train(3, "run.toml", "run_dir=run", "limits.updates=4", cwd=jobs)
        assert done.status == 0, str(done)


@pytest.mark.parametrize("again", [("train", "run.toml", "run_dir=run"), ("resume", "run")], ids=lambda words: words[0])
def test_a_job_killed_before_its_first_update_begins_again(own_mpi, mpi, jobs, waiting, again):
    if mpi != own_mpi:
        pytest.skip("one MPI is enough")
    job = waiting({2: ["loss"]})  # a worker tries its task, while the server opens the run
    job.until(lambda: (jobs / "run" / "config.toml").exists())
    job.kill()
    done = run_asyncfeded(*again, "limits.updates=4", "--ranks", 3, cwd=jobs, env=mpi.env)
    assert done.status == 0, str(done)
    assert "run: the run was ended before its first update; it begins again\n" in done.stderr, str(done)
    assert len(record.read_record(jobs / "run").updates) == 4


def test_a_job_killed_while_it_loads_begins_again(own_mpi, mpi, jobs, waiting):
    if mpi != own_mpi:
        pytest.skip("one MPI is enough")
    waiting({2: ["client_data"]}).kill()
    done = mpi.train(3, "run.toml", "run_dir=run", "limits.updates=4", cwd=jobs)
    assert (done.status, done.result["updates"]) == (0, 4), str(done)


def test_a_wish_for_a_checkpoint_while_it_loads_is_fulfilled_when_it_trains(own_mpi, jobs, waiting, mpi):
    if mpi != own_mpi:
        pytest.skip("one MPI is enough")
    job = waiting({2: ["client_data"]})
    for pid in job.ranks().values():
        os.kill(pid, signal.SIGUSR1)
    (jobs / "go").touch()
    job.until(lambda: list((jobs / "run").glob("checkpoints/checkpoint-*.h5")))


def test_a_run_that_is_asked_to_stop_before_its_first_update_ends_in_order_and_goes_on(mpi, jobs):
    """The first round takes some thousand steps; on the virtual clock no time has passed."""
    long = ("clock=virtual", "training.epochs=5", "rule.epochs_max=5", "training.batch_size=1", "checkpoint.every_updates=0")
    with Job(jobs, mpi.env, "train", "run.toml", "--ranks", 3, "run_dir=run", *long) as job:
        job.until(lambda: (jobs / "run" / "log.txt").exists() and " 0 updates " in log(jobs / "run"))
        os.kill(job.ranks()[0], signal.SIGTERM)
        status, said = job.end()
    assert status == RESUMABLE, said
    assert (json.loads((jobs / "run" / "result.json").read_text())["updates"], names(jobs / "run")) == (0, names_of(0))
    done = run_asyncfeded("resume", "run", "limits.updates=1", cwd=jobs, env=mpi.env)
    assert (done.status, done.result["updates"]) == (0, 1), str(done)
