"""States of a run in which no two numbers are equal, and their checkpoints, for the tests of this folder."""

from dataclasses import fields, replace

import numpy as np

from asyncfeded.config import Config
from asyncfeded.model.flat import Entry, Layout
from asyncfeded.store import record
from asyncfeded.store.checkpoint import CLIENT_STATE, Rows, Snapshot, save
from conftest import METRICS

CONFIG = Config(run_dir="runs/größe", clients=3, limits={"updates": 200}).to_toml()
LAYOUT = Layout(
    (
        Entry("0.weight", (150, 200), 0),
        Entry("0.bias", (7,), 30000),
        Entry("scale", (), 30007),
        Entry("1.mean", (3,), 30008),
    ),
    num_params=30008,
    size=30011,
)
ONE = Layout((Entry("w", (1,), 0),), 1, 1)
NUMBERS = {field.name: field.type for field in fields(Snapshot) if field.type in (int, float)}


def noise(size, seed):
    """float32 (size,) of any bits that are a number: huge ones, subnormals, zeros of both signs."""
    bits = np.random.default_rng(seed).integers(0, 2**32, size, np.uint32)
    return (bits & np.uint32(0xFF7FFFFF)).view(np.float32)  # an exponent of all ones is infinite or no number


def numbered(rows):
    """Vectors by their numbers, as a snapshot has them."""
    return Rows(tuple(rows), len(next(iter(rows.values()), ())), lambda: iter(rows.values()))


def a_snapshot(rows=120, layout=LAYOUT, **changes):
    """A state in which no two numbers are equal."""
    numbers = {name: kind(rows + i) if kind is int else rows + i / 7 for i, (name, kind) in enumerate(NUMBERS.items())}
    who = [
        (2, 40, 400, 0.5, 0.25, 39, 117, True, 3.5, 0, False),
        (5, 9, 2**40, 0.125, 0.0, 9, 116, False, np.nan, 10, True),
        (1, 8, 0, np.nan, 1e-3, 7, 1, True, np.inf, 3, False),
    ]
    clients = np.array(who, CLIENT_STATE)
    snapshot = Snapshot(
        config=CONFIG,
        provenance=record.provenance() | {"commit": ""},
        **numbers | {"update_rows": rows, "version": rows + 1000},
        layout=layout,
        model=noise(layout.size, rows),
        bases=numbered({117: noise(layout.size, rows + 1), 1: noise(layout.size, rows + 2)}),
        own_names=() if "clients" in changes else ("there (1,)", "w.step ()", "w.mean (1, 3)"),
        own=numbered({} if "clients" in changes else {client: noise(5, rows + client) for client in range(len(clients))}),
        clients=clients,
        metrics=METRICS,
        score=np.array([0.5, rows / 7]),
        rule={
            "K": np.array([2, 5, 1]),
            "B": noise(layout.size, 3),
            "weight": np.array([0.1]),
            "y": noise(24, 4).reshape(2, 3, 4),
        },
    )
    return replace(snapshot, **changes)


def idle(count=3):
    """Clients that have no order, so that they need no base."""
    clients = np.zeros(count, CLIENT_STATE)
    clients["epochs"], clients["base_version"] = 1, -1
    return clients


def bits(value):
    """What two values have in common if and only if they are the same to the bit."""
    if isinstance(value, Rows):
        return value.length, [(number, bits(row)) for number, row in value]
    if isinstance(value, dict):
        return {name: bits(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    return type(value), np.float64(value).tobytes() if isinstance(value, float) else value


def the_same(one, other):
    return all(
        bits(getattr(one, field.name)) == bits(getattr(other, field.name))
        for field in fields(Snapshot)
        if field.name != "let_go"
    )


def put(run_dir, snapshot):
    """A checkpoint in its place."""
    (run_dir / "checkpoints").mkdir(exist_ok=True)
    path = run_dir / "checkpoints" / snapshot.file_name
    save(path, snapshot)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def flip(path, at, bit=0):
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1 << bit]))


def written(writer, snapshot):
    """How it went."""
    assert writer.start(snapshot)
    done = writer.wait()
    assert done is not None
    return done
