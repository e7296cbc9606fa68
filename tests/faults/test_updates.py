"""A client that trains wrongly."""

import numpy as np

from asyncfeded.store import record
from conftest import run
from faults.conftest import broken

NAN = """
import torch
from asyncfeded.training.client import Trainer

real = Trainer.round

def round_(trainer, order, *rest):
    done = real(trainer, order, *rest)
    if order.client == 1:
        trainer._flat.buffer[-1] = torch.nan
    return done

Trainer.round = round_
"""


def test_a_client_that_sends_nan_is_refused_and_the_other_trains_on(own_mpi, jobs):
    """Rounds of 0.2 s: a client that starts late on a busy machine comes before the other has made its 20 updates."""
    done = run(broken(own_mpi, jobs, NAN, "limits.updates=20", "heterogeneity.round_s=[0.2]"), jobs, own_mpi.env)
    assert done.status == 0, str(done)
    updates = record.read_record(jobs / "run").updates
    bad = updates["client"] == 1
    assert (updates["accepted"] == ~bad).all()
    assert (done.result["updates"], done.result["refused"]) == (20, bad.sum())
    assert bad.any()
    assert np.isfinite(updates["gamma"][~bad]).all()
    assert done.result["metrics"]["accuracy"] > 0.3  # a tenth is chance
