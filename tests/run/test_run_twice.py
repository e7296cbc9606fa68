"""`run.train` called more than once in a process, as a script of a user does under mpiexec."""

import json
import sys

from conftest import run

TWICE = """
import sys
from pathlib import Path
from asyncfeded.run import run

overrides = ["clock=virtual", "clients=2", "limits.updates=5"]
status = [run.train(Path("run.toml"), [*overrides, f"run_dir={name}"]) for name in ("once", "again")]
sys.exit(max(status))
"""


def test_a_process_trains_twice(mpi, folder):
    (folder / "twice.py").write_text(TWICE)
    done = run(mpi.command((2, [sys.executable, "twice.py"])), folder, mpi.env)
    assert done.status == 0, str(done)
    once, again = (json.loads((folder / name / "result.json").read_text()) for name in ("once", "again"))
    assert once["model_sha256"] == again["model_sha256"]
