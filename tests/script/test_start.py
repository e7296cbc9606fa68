"""`asyncfeded.train`: in a job of its own, and on the ranks of a script that mpiexec has started."""

import hashlib
import os
import pickle
import signal
import sys
import time

import pytest

import asyncfeded
from asyncfeded.script.start import _result
from conftest import Job, descendants, run, run_asyncfeded

VIRTUAL = ["clock=virtual", "clients=2", "limits.updates=5"]
HERE = f"""
import signal
import asyncfeded
from asyncfeded.rules.fedasync import FedAsync
from asyncfeded.tasks.synthetic import Synthetic

class Own(Synthetic):
    pass

def main():
    handler = signal.getsignal(signal.SIGINT)
    once = asyncfeded.train("run.toml", overrides=[*{VIRTUAL}, "run_dir=once"])
    task, rule = Own(samples_max=99), FedAsync(alpha=0.5)
    again = asyncfeded.train("run.toml", overrides=[*{VIRTUAL}, "run_dir=again"], task=task, rule=rule)
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(once.updates) == len(again.updates) == 5
    try:
        asyncfeded.train("run.toml", overrides=[*{VIRTUAL}, "run_dir=once"])
    except asyncfeded.RunFailed as failed:
        assert failed.status == 2, failed
        assert "holds a run already" in failed.log
        print("was told", flush=True)

if __name__ == "__main__":
    main()
"""


def own_digest(folder):
    return hashlib.sha256((folder / "here.py").read_bytes()).hexdigest()


def test_a_script_under_mpiexec_trains_twice_and_is_told_on_every_rank_why_not_thrice(mpi, folder):
    (folder / "here.py").write_text(HERE)
    done = run(mpi.command((2, [sys.executable, "here.py"])), folder, mpi.env)
    assert done.status == 0, str(done)
    assert done.stdout.count("was told") == 2, str(done)
    again = asyncfeded.open(folder / "again")
    assert again.config.task["name"] == f"{folder}/here.py:Own"
    assert (again.config.task["samples_max"], again.config.rule["alpha"]) == (99, 0.5)
    assert own_digest(folder) in again._record.attributes["data"]
    assert again.config.rule["name"] == "fedasync"
    replayed = run_asyncfeded("replay", "again", cwd=folder, env=mpi.env)
    assert replayed.status == 0, str(replayed)
    assert replayed.result["model_sha256"] == again.result["model_sha256"]


def test_a_job_of_its_own(folder, monkeypatch, capsys):
    """In this process, as in a notebook: twice, with an MPI that is never initialised here."""
    monkeypatch.chdir(folder)
    trained = asyncfeded.train("run.toml", ranks=2, overrides=VIRTUAL)
    assert "stopped: 5 updates were merged" in capsys.readouterr().err
    monkeypatch.chdir("/")
    assert trained.result["updates"] == len(trained.updates) == 5
    assert trained.config.limits.updates == 5
    with pytest.raises(asyncfeded.RunFailed, match=r"status 2\nasyncfeded: .*no such file") as failed:
        asyncfeded.train(folder / "other.toml", ranks=2)
    assert failed.value.status == 2
    assert str(pickle.loads(pickle.dumps(failed.value))) == str(failed.value)
    assert failed.value.log == capsys.readouterr().err


LONG = """
import asyncfeded
try:
    asyncfeded.train("run.toml", ranks=2, overrides=["run_dir=long", "limits.updates=0", "limits.seconds=1000"])
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.fixture
def long(folder):
    """A script that waits for a run that is training."""
    (folder / "long.py").write_text(LONG)
    log = folder / "long" / "log.txt"
    with Job(folder, dict(os.environ), command=[sys.executable, "long.py"]) as job:
        job.until(lambda: log.exists() and " updates (" in log.read_text())
        yield job


def test_ctrl_c_ends_the_run_in_order(long, folder):
    long.process.send_signal(signal.SIGINT)
    status, said = long.end()
    assert (status, said.splitlines()[-1]) == (0, "interrupted"), said
    assert "go on with: asyncfeded resume" in said
    assert list((folder / "long" / "checkpoints").iterdir())


def test_the_job_ends_with_the_process_that_asked_for_it(long):
    ranks = descendants(long.process.pid)
    assert len(ranks) > 2
    long.process.kill()
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}/exe") for pid in ranks):  # noqa: PTH110, os.path asks for no right
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({}, r"no launcher has started this process: give a number of ranks \(ranks=5\)"),
        ({"ranks": 1}, "ranks = 1: at least 2 are needed"),
        ({"ranks": 2, "task": object()}, r"an object cannot be given to ranks .* name its class in the file"),
    ],
)
def test_what_cannot_be_started_like_this(how, sentence):
    with pytest.raises(ValueError, match=sentence):
        asyncfeded.train("run.toml", **how)


def test_the_result_is_found_before_what_the_ranks_print_themselves():
    lines = ["loading 3", 'loading 4{"run_dir": "runs/a", "updates": 3}', '{"mine": 1}', "bye"]
    assert _result(lines)["run_dir"] == "runs/a"
