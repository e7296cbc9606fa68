"""The processes of trackers: they see the end of the run, or are ended; nobody waits for them before."""

import json
import time

import numpy as np

from asyncfeded.run import trackers
from asyncfeded.run.trackers import Trackers
from asyncfeded.store.record import UPDATE, Record
from asyncfeded.training.heterogeneity import PROFILE
from conftest import METRICS, places

FAKE = """
import json, os, pathlib, time
class Run:
    def define_metric(self, *names, **named): pass
    def log(self, values): self.file.write(json.dumps(values) + chr(10))
    def finish(self): self.file.close()
def init(dir, **about):
    print("it prints much")
    run = Run()
    run.file = (pathlib.Path(dir) / "taken").open("w")
    return run
"""
STUCK = "import pathlib, time; pathlib.Path({!r}).touch(); time.sleep(1000)"


def test_one_takes_all_points_one_cannot_begin_and_one_hangs(tmp_path, monkeypatch):
    """Nobody waits for them before the end, and then no longer than they may take; what is lost is told."""
    modules, run_dir, said = tmp_path / "modules", tmp_path / "run", []
    modules.mkdir()
    run_dir.mkdir()
    (modules / "wandb.py").write_text(FAKE)
    (modules / "tensorboard.py").write_text("raise RuntimeError('it is broken')")
    (modules / "mlflow.py").write_text(STUCK.format(str(tmp_path / "hangs")))
    monkeypatch.setenv("PYTHONPATH", str(modules))
    row = dict.fromkeys(UPDATE.names, 0) | {"accepted": True, "gamma": 0.5}
    monkeypatch.setattr(trackers, "END_S", 100.0)
    with Record(run_dir / "record.h5", "seed = 1", places("here"), np.zeros(1, PROFILE), METRICS) as book:
        with Trackers(("mlflow",), run_dir, 0, said.append):
            with Trackers(("tensorboard", "wandb"), run_dir, 0, said.append):
                deadline = time.monotonic() + 100
                book.updates.append(tuple((row | {"version": 1}).values()))
                while not ((tmp_path / "hangs").exists() and (run_dir / "taken").exists()):
                    assert time.monotonic() < deadline, said
                    time.sleep(0.05)
                book.updates.append(tuple((row | {"version": 2}).values()))
                book.close()
            assert said == ["tensorboard: RuntimeError: it is broken; its points are lost, and the run goes on"]
            monkeypatch.setattr(trackers, "END_S", 0.1)
        assert said[1:] == ["mlflow: has not taken its last points within 0 s; they are lost"]
    taken = [json.loads(text) for text in (run_dir / "taken").read_text().splitlines()]
    assert taken[-1]["version"] == 2
    assert taken[-1]["update/gamma"] == 0.5
    assert (run_dir / "wandb.log").read_text() == "it prints much\n"
