"""Ranks of a server of several ranks are killed: one of the others, and the one that decides."""

import os
import signal

import pytest

from asyncfeded.store import checkpoint
from conftest import Job, run_asyncfeded
from faults.conftest import names
from run.sliced import RUN, differing, told

SETTINGS = ("limits.updates=24", "checkpoint.every_updates=2")


@pytest.fixture(scope="module")
def whole(own_mpi, tmp_path_factory):
    """The bits of a run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "run.toml").write_text(RUN, encoding="utf-8")
    assert own_mpi.train(2, "run.toml", "run_dir=run", *SETTINGS, cwd=folder).result
    return told(folder / "run")


def test_a_killed_server_rank_ends_the_job_and_the_run_goes_on_to_the_same_bits(mpi, tmp_path, whole):
    """Rank 1 dies, then rank 0 of the job that goes on. No checkpoint is half written.

    Most ranks wait for rank 0, which leaves, and not for the one that died.
    """
    (tmp_path / "run.toml").write_text(RUN, encoding="utf-8")
    start, again = ("train", "run.toml", "--ranks", 5, "servers=2", "run_dir=run", *SETTINGS), ("resume", "run")
    for command, rank in ((start, 1), (again, 0)):
        before = names(tmp_path / "run")
        with Job(tmp_path, mpi.env, *command) as job:
            job.until(lambda before=before: names(tmp_path / "run")[-1:] > before[-1:])
            os.kill(job.ranks()[rank], signal.SIGKILL)
            status, said = job.end()
        assert status != 0, said
        assert said.count("the server is dead; go on with: asyncfeded resume run") == 1, said
        assert checkpoint.newest(tmp_path / "run").damaged == ()
    done = run_asyncfeded(*again, cwd=tmp_path, env=mpi.env)
    assert done.status == 0, str(done)
    assert differing(told(tmp_path / "run"), whole) == []
