"""Whoever only looks at a run does not wait for torch, which takes seconds to load."""

import sys

from conftest import run
from watch.runs import open_record, update

LOOK = """
import sys
sys.modules["torch"] = None  # an import of it fails now
import asyncfeded.mpi.shield
from asyncfeded.cli import app
for line in sys.argv[1:]:
    try:
        app(line.split(), standalone_mode=False)
    except SystemExit as end:
        assert not end.code, line
"""


def test_whoever_looks_at_a_run_loads_no_torch(tmp_path):
    with open_record(tmp_path, 2) as book:
        book.updates.append(update(1.0, 0, version=1, compute_s=0.5))
    lines = [
        "--help",
        *(f"{what} {tmp_path}" for what in ("watch", "watch --json", "trace", "info", "export --to csv")),
    ]
    done = run([sys.executable, "-c", LOOK, *lines], tmp_path)
    assert (done.status, done.stderr) == (0, ""), str(done)
    assert done.stdout.count("ended") == 2
    assert done.stdout.rstrip().endswith("1 updates, 0 evaluations, 0 client evaluations, 0 events")
