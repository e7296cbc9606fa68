"""What the tests of a server of several ranks share: a run, and its bits."""

from asyncfeded.store import record

RUN = """
seed = 3
clock = "virtual"
clients = 4
[limits]
updates = 12
[task]
name = "synthetic"
model = "mlp"
hidden = 9000
sizes_given = [40, 60, 80, 100]
[training]
epochs = 1
batch_size = 20
learning_rate = 0.01
momentum = 0.5
optimizer_state = "kept"
[heterogeneity]
round_s = [1.0, 1.3, 0.7, 2.1]
[evaluation]
every_s = 2.0
average = 8.0
[rule]
name = "asyncfeded"
distance = "mahalanobis"
"""
"""A model of 3 chunks, and as much momentum of each client behind it: 5 chunks in a message."""


def told(run_dir):
    """The bits of a run by name, but for what the wall clock measured."""
    tables = record.read_record(run_dir)
    rows = {name: tables.updates[name].tobytes() for name in tables.updates.dtype.names if name not in record.MEASURED}
    rows |= {name: tables.evaluations[name].tobytes() for name in tables.evaluations.dtype.names}
    return rows | {"model": (run_dir / "model.h5").read_bytes()}


def differing(one, other):
    return [name for name in one if one[name] != other[name]]
