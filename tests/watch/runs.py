"""Records of runs, written by hand."""

import numpy as np

from asyncfeded.config import Config
from asyncfeded.store.record import UPDATE, Record
from asyncfeded.training.heterogeneity import PROFILE
from conftest import METRICS, places


def update(time_s, client, **values):
    """A row of updates."""
    return tuple(({"time_s": time_s, "client": client, "accepted": True} | values).get(name, 0) for name in UPDATE.names)


def open_record(run_dir, clients, **config):
    """The record of a run that begins."""
    config = Config.model_validate({"run_dir": str(run_dir), "limits": {"updates": 100}, "clients": clients} | config)
    return Record(run_dir / "record.h5", config.to_toml(), places("one", "two"), np.zeros(clients, PROFILE), METRICS)
