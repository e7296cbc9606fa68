"""The whole job, its launcher, its server or a client is killed, ended, or stopped for a while."""

import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from asyncfeded.run import RESUMABLE
from asyncfeded.store import checkpoint, record
from conftest import Job, run
from faults.conftest import goes_on, names, stopped, updates_of

PUNISH = Path(__file__).parents[2] / "launch" / "punish.py"
PUNISH_S = float(os.environ.get("ASYNCFEDED_TEST_PUNISH_S", "15"))


def test_a_run_killed_at_random_instants_ends_as_the_undisturbed_one_to_the_bit(own_mpi, tmp_path):
    command = [sys.executable, PUNISH, PUNISH_S, "--folder", "punished", "limits.updates=80", "task.hidden=32"]
    done = run(command, tmp_path, own_mpi.env, timeout=240 + 2 * PUNISH_S)
    assert done.status == 0, str(done)
    assert done.result["kills"] > 0, str(done)
    assert done.result["runs"] == done.result["runs_equal"] > 0, str(done)
    assert done.result["updates_of_a_run"] == 80
    assert [path.name for path in sorted((tmp_path / "punished").iterdir())] == ["whole", "whole.out"]


def test_a_punished_run_that_ends_otherwise_is_told(own_mpi, tmp_path):
    """On the wall clock no two runs are equal."""
    fast = ("limits.updates=10", "heterogeneity.round_s=[0.1]")
    command = [sys.executable, PUNISH, 0.1, "--folder", "punished", "clock=wall", "clients=0", *fast]
    done = run(command, tmp_path, own_mpi.env, timeout=240)
    assert done.status == 1, str(done)
    # Or it is refused, where it goes on with another number of ranks.
    assert re.search(r"punished/0: not the end of the undisturbed run, status [02]; see", done.stderr), str(done)
    assert (done.result["runs"], done.result["runs_equal"]) == (1, 0)


def test_a_killed_server_ends_the_job_and_the_run_goes_on(mpi, jobs, start):
    """Whichever rank notices first says so. Rank 1 does not notice here, as one in a long round."""
    job = start()
    ranks = job.ranks()
    os.kill(ranks[1], signal.SIGSTOP)
    job.until(lambda: stopped(ranks[1]))
    os.kill(ranks[0], signal.SIGKILL)
    status, said = job.end()
    assert status != 0, said
    assert said.count("asyncfeded resume run") == 1, said
    assert not (jobs / "run" / "result.json").exists()
    goes_on(mpi, jobs)


RAISES = """
from asyncfeded.mpi.launcher import MPI
from asyncfeded.tasks.synthetic import Synthetic as BuiltIn

ASKED = [0]

class Synthetic(BuiltIn):
    rank: int

    def loss(self, model, batch):
        self.count()
        return super().loss(model, batch)

    def score(self, model, batch):
        self.count()
        return super().score(model, batch)

    def count(self):
        ASKED[0] += 1
        if MPI.COMM_WORLD.rank == self.rank and ASKED[0] > 50:
            raise KeyError("a bug")
"""


@pytest.mark.parametrize("rank", [0, 2])
def test_a_rank_that_raises_ends_a_job_that_outlives_its_clients(mpi, jobs, rank):
    """So that a death does not end the job, Open MPI's Abort ends no other rank either, unless most ranks do."""
    (jobs / "raises.py").write_text(RAISES)
    often = ("evaluation.every_s=0.01", "task.name=raises.py:Synthetic", f"task.rank={rank}")
    with Job(jobs, mpi.env, "train", "run.toml", "--ranks", 5, "run_dir=run", "clients=4", *often) as job:
        status, said = job.end()
    assert status != 0, said
    assert said.count("uncaught error, ending the job") == said.count("raised KeyError: 'a bug'") == 1, said


def test_sigterm_to_the_launcher_leaves_a_run_that_goes_on(mpi, jobs, start):
    """MPICH's passes it on and waits; Open MPI's gives the ranks half a second, which may be too short for a checkpoint."""
    job = start()
    os.kill(job.process.pid, signal.SIGTERM)
    status, said = job.end()
    if not mpi.vendor.startswith("Open MPI"):
        assert status == RESUMABLE, said
        result = json.loads((jobs / "run" / "result.json").read_text())
        assert result["stopped"] == "interrupted by a signal"
        assert names(jobs / "run")[-1] == f"checkpoint-{result['updates']:010d}.h5"
    assert checkpoint.newest(jobs / "run").damaged == ()
    goes_on(mpi, jobs)


def test_ranks_that_are_stopped_and_continued(mpi, jobs, start):
    """A client holds up nobody meanwhile, and comes back; a server holds up all."""
    job, run_dir = start("faults.patience_s=100"), jobs / "run"
    server, _, client = (job.ranks()[rank] for rank in range(3))
    os.kill(client, signal.SIGSTOP)
    job.until(lambda: stopped(client))
    others = updates_of(run_dir, 0)
    job.until(lambda: updates_of(run_dir, 0) > others + 5)
    its = updates_of(run_dir, 1)
    os.kill(client, signal.SIGCONT)
    job.until(lambda: updates_of(run_dir, 1) > its + 5)
    os.kill(server, signal.SIGSTOP)
    job.until(lambda: stopped(server))
    before = [updates_of(run_dir, client) for client in range(2)]
    os.kill(server, signal.SIGCONT)
    job.until(lambda: all(updates_of(run_dir, client) > before[client] + 5 for client in range(2)))
    ends_well(job, run_dir)


def ends_well(job, run_dir):
    """Whether SIGTERM, to the server alone, stops all ranks in order."""
    os.kill(job.ranks()[0], signal.SIGTERM)
    status, said = job.end()
    assert status == RESUMABLE, said
    result, updates = json.loads((run_dir / "result.json").read_text()), record.read_record(run_dir).updates
    assert (result["stopped"], result["refused"]) == ("interrupted by a signal", 0)
    assert updates["version"].tolist() == list(range(1, result["updates"] + 1))
