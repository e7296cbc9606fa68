"""Asynchronous federated learning over MPI with Euclidean-distance staleness (AsyncFedED, arXiv 2205.13797).

What a task or a rule of your own needs: the protocols `Task` and `Rule` (`Waits` for a rule whose clients wait for each
other, `Measures` for one that asks them for a number), `Settings`, the class of their keys, and what they take and give.
What a script or a notebook needs: `train`, and `open` for what a run has left; both give a `Run`. Nothing is loaded before
it is asked for, since every rank is started by a small process that needs none of it (mpi/shield.py).
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from asyncfeded.config import Settings
    from asyncfeded.metric import Metric
    from asyncfeded.model.flat import Layout
    from asyncfeded.model.global_model import GlobalModel
    from asyncfeded.rules import Measures, Rule, Waits
    from asyncfeded.rules.decision import Decision, Reply, State, Update
    from asyncfeded.script.opened import Run, open  # noqa: A004
    from asyncfeded.script.start import RunFailed, train
    from asyncfeded.tasks import Optimizes, Schedules, Steps, Task
    from asyncfeded.tasks.at import At
    from asyncfeded.tasks.classification import Batch, Classification, Data, Samples, Sums

__version__ = version("asyncfeded")

__all__ = [
    "At",
    "Batch",
    "Classification",
    "Data",
    "Decision",
    "GlobalModel",
    "Layout",
    "Measures",
    "Metric",
    "Optimizes",
    "Reply",
    "Rule",
    "Run",
    "RunFailed",
    "Samples",
    "Schedules",
    "Settings",
    "State",
    "Steps",
    "Sums",
    "Task",
    "Update",
    "Waits",
    "open",
    "train",
]

_ROOMS = {
    "At": "tasks.at",
    "Batch": "tasks.classification",
    "Classification": "tasks.classification",
    "Data": "tasks.classification",
    "Decision": "rules.decision",
    "GlobalModel": "model.global_model",
    "Layout": "model.flat",
    "Measures": "rules",
    "Metric": "metric",
    "Optimizes": "tasks",
    "Reply": "rules.decision",
    "Rule": "rules",
    "Run": "script.opened",
    "RunFailed": "script.start",
    "Samples": "tasks.classification",
    "Schedules": "tasks",
    "Settings": "config",
    "State": "rules.decision",
    "Steps": "tasks",
    "Sums": "tasks.classification",
    "Task": "tasks",
    "Update": "rules.decision",
    "Waits": "rules",
    "open": "script.opened",
    "train": "script.start",
}


def __getattr__(name: str) -> object:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_ROOMS[name]}"), name)
