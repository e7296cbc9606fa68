"""How a real run ends when something breaks."""

import sys

import h5py
import pytest

from asyncfeded.store import record
from conftest import run
from run.commands import ALSO_TO_A_FILE, HOST, PYTHON_M, write_toml


def test_an_interrupt_stops_a_run_as_a_limit_does(mpi, folder):
    """A launcher passes the signal on to all ranks; here, to the server alone, which stops the others."""
    (folder / "late.py").write_text(
        "import os, signal, threading, time\n"
        "from pathlib import Path\n"
        "def interrupt():\n"
        "    rows = Path('run/record.h5.updates')\n"
        "    while not (rows.exists() and rows.stat().st_size):\n"
        "        time.sleep(0.05)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "if os.environ.get('PMI_RANK', os.environ.get('OMPI_COMM_WORLD_RANK')) == '0':\n"
        "    threading.Thread(target=interrupt, daemon=True).start()\n"
        "from asyncfeded.cli import main\n"
        "main()\n"
    )
    python = [sys.executable, "late.py", "train", "run.toml", "run_dir=run", "limits.updates=1000000"]
    done = run(mpi.command((3, python)), folder, mpi.env)
    assert done.status == 75, str(done)
    assert done.result["stopped"] == "interrupted by a signal"
    assert "go on with: asyncfeded resume run\n" in done.stderr
    assert len(record.read_record(folder / "run").updates) == done.result["updates"] > 0
    assert (folder / "run" / "model.h5").exists()


def test_a_rank_whose_environment_is_broken_ends_the_job(mpi, folder):
    """It never comes to MPI_Init, where the others would wait for it for ever."""
    (folder / "bad").mkdir()
    (folder / "bad" / "torch.py").write_text(ALSO_TO_A_FILE + "raise ImportError('no torch on this host')")
    bad = ["env", f"PYTHONPATH={folder / 'bad'}", *PYTHON_M, "train", "run.toml"]
    done = run(mpi.command((1, [*PYTHON_M, "train", "run.toml"]), (1, bad)), folder, mpi.env, timeout=60)
    assert done.status != 0, str(done)
    head = f"asyncfeded: rank 1 on {HOST}: uncaught error, ending the job"
    assert head in done.stderr, str(done)
    assert f"{head}\nTraceback" in (folder / "stderr-1").read_text(), str(done)
    assert "no torch on this host" in done.stderr


BROKEN = """
import asyncfeded.training.client, asyncfeded.model.global_model
from asyncfeded.cli import main

def broken(function, when):
    def call(self, *args):
        if when(self, *args):
            raise KeyError("a bug")
        return function(self, *args)
    return call

if WHO == "client":  # client 1, in its second round
    kind = asyncfeded.training.client.Trainer
    kind.round = broken(kind.round, lambda self, order, *args: (order.client, order.round) == (1, 1))
else:  # the server, when it measures its third update
    kind = asyncfeded.model.global_model.GlobalModel
    kind.distances = broken(kind.distances, lambda self, *args: self.version == 2)
main()
"""


@pytest.fixture(scope="module", params=["client", "server"])
def broken(request, mpi, tmp_path_factory):
    """A run in which a rank raises, long before it would end: who it is, what each rank said, and how the job ended."""
    folder = write_toml(tmp_path_factory.mktemp("broken"))
    (folder / "broken.py").write_text(ALSO_TO_A_FILE + BROKEN.replace("WHO", repr(request.param)))
    python = [sys.executable, "broken.py", "train", "run.toml", "run_dir=run", "limits.updates=1000000"]
    done = run(mpi.command((3, python)), folder, mpi.env)
    place = {"client": "rank 2 (worker)", "server": "rank 0 (server)"}[request.param]
    said = {path.name.removeprefix("stderr-"): path.read_text() for path in folder.glob("stderr-*")}
    return place, said, done


def test_a_rank_that_raises_ends_the_job(broken):
    _, _, done = broken
    assert done.status != 0, str(done)


def test_rank_and_host_stand_before_the_traceback(broken):
    place, ranks, _ = broken
    head, said = f"asyncfeded: {place} on {HOST}: uncaught error, ending the job", ranks[place.split()[1]]
    assert said.index(f"{head}\nTraceback") < said.index("KeyError: 'a bug'")


def test_the_traceback_is_told_once(broken):
    _, ranks, done = broken
    assert sum(said.count("KeyError: 'a bug'") for said in ranks.values()) == 1, str(done)


def test_training_that_diverges_ends_with_a_clear_error(own_mpi, folder):
    steps = ("task.name=digits", "training.learning_rate=1e20", "limits.updates=1000000")
    done = own_mpi.train(2, "run.toml", *steps, cwd=folder)
    assert done.status != 0, str(done)
    assert "refused, client 0: weights that are not finite" in done.stderr, str(done)
    assert "lower training.learning_rate" in done.stderr
    assert "stopped: no client is left (10 refusals in a row (faults.max_refusals))" in done.stderr
    assert "asyncfeded resume" not in done.stderr


def test_the_model_is_saved_before_anything_that_can_fail_at_the_end(own_mpi, folder):
    """Here the test of the final model fails; no record and no folder is lost by that either."""
    (folder / "broken.py").write_text(
        "from asyncfeded.cli import main\n"
        "from asyncfeded.training.evaluation import Evaluator\n"
        "def score(*arguments):\n"
        "    raise KeyError('a bug')\n"
        "Evaluator.score = score\n"
        "main()\n"
    )
    done = run(own_mpi.command((3, [sys.executable, "broken.py", "train", "run.toml", "run_dir=run"])), folder, own_mpi.env)
    assert done.status != 0, str(done)
    assert "KeyError: 'a bug'" in done.stderr, str(done)
    with h5py.File(folder / "run" / "model.h5") as file:
        assert file.attrs["version"] == 12
    assert len(record.read_record(folder / "run").updates) == 12
    assert not (folder / "run" / "record.h5.updates").exists()
