"""A small grid, and runs of it that nobody has made: of any curve, done or failed."""

import json

import numpy as np

from asyncfeded.store.record import UPDATE, Record
from asyncfeded.studies import rows, study
from asyncfeded.studies.perform import Done
from asyncfeded.training.heterogeneity import PROFILE
from conftest import METRICS, places

GRID = """
error_probabilities = [0.0, 0.5]
seeds = [1, 2]
caption = "Small."

[run]
clock = "virtual"
clients = 3
limits.seconds = 4
evaluation.every_s = 1.0
heterogeneity.round_s = [1.0]
task.split = "even"

[tuning]
trials = 4
halving = 2
rounds = 2
extensions = 1
run.limits.seconds = 2

[untuned]
run.training.learning_rate = 0.03

[tasks.digits]
run.task.name = "digits"
run.training.epochs = 1
targets = [0.5, 0.9]
tune."training.learning_rate" = {from = 0.01, to = 0.3}

[rules.asyncfeded]
run.rule.name = "asyncfeded"
tune."rule.lambda" = {from = 0.1, to = 3.0}
[rules.asyncfeded.on.digits]
rule.lambda = 0.7

[rules.hinge]
run.rule = {name = "fedasync", staleness = "hinge"}
tune."rule.alpha" = {from = 0.1, to = 1.0, scale = "linear"}
"""


def changed(path, old, new):
    """The file, with a text in it replaced."""
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    return path


def finish(run, out, curve, updates=10, metrics=METRICS):
    """The folder of a run that is done: values of the goal, which is the first metric, at 0, 1, 2, ... s."""
    folder = out / "runs" / run.name
    folder.mkdir(parents=True)
    with Record(folder / "record.h5", "", places("here"), np.zeros(1, PROFILE), metrics) as book:
        for i, value in enumerate(curve):
            book.evaluations.append((float(i), i, value, 1.0))
        for i in range(updates):
            fields = {"gamma": float(i), "tau": i, "accepted": True}
            book.updates.append(tuple(fields.get(name, 0) for name in UPDATE.names))
    (folder / "result.json").write_text(json.dumps({"wall_s": 3.0, "workers_busy": 0.5}))


def told(grid, out, curves, metrics=None, levels=(0.0,)):
    """What there is of a study whose runs have these curves, by rule and seed; None: it failed. Others are missing.

    `levels` are the error probabilities that have runs.
    """
    runs = list(study.expand(grid, "given", {}))
    found = {}
    for run in runs:
        curve = curves.get((run.rule, run.seed), ())
        if run.error_probability not in levels:
            continue
        if curve is None:
            found[run.name] = rows.of_failure(run)
        elif len(curve):
            finish(run, out, curve, **({"metrics": metrics} if metrics else {}))
            found[run.name] = rows.of_run(run, out / "runs" / run.name, 400.0)
    return Done({"given": runs}, found, [], len(runs) - len(found), [])
