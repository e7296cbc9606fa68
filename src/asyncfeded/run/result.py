"""The result of a finished run: its figures, printed for people and as one line of JSON."""

import hashlib
import json
import math
import os
import resource
from pathlib import Path

import numpy as np
from rich.table import Table

from asyncfeded.files.plain import read_numbers
from asyncfeded.metric import Metrics
from asyncfeded.mpi.world import World
from asyncfeded.run.progress import Screen, fastest_and_slowest
from asyncfeded.training.server import Outcome, Server
from asyncfeded.training.server_state import ServerState

CLIENTS_SHOWN = 20
"""Number of clients in the table at the end of a run."""


def figures(
    server: Server,
    outcome: Outcome,
    run_dir: Path,
    updates: np.ndarray,
    tests: np.ndarray,
    server_bytes: int,
    params: int,
    receiving_s: float,
    world: World,
    workers: float,
) -> dict[str, object]:
    """The figures of a finished run. `updates` and `tests` are the rows of its record: `updates`, `client_evaluations`.

    `server_bytes` is the memory of the models of rank 0, `params` the number of parameters of the model.
    """
    gamma = updates["gamma"][np.isfinite(updates["gamma"])]
    return {
        "run_dir": str(run_dir),
        "updates": server.state.updates,
        "seconds": round(outcome.seconds, 3),
        "wall_s": round(outcome.wall_s, 3),
        "updates_per_s": round(server.state.updates / outcome.seconds, 3) if outcome.seconds else None,
        "metric": server.settings.metrics.goal,
        "metrics": {name: _number(value) for name, value in outcome.score.values.items()},
        **({"clients": over_clients(tests, server.settings.metrics)} if len(tests) else {}),
        "gamma_median": _number(float(np.median(gamma)) if len(gamma) else math.nan),
        "server_busy": round((server.state.busy_s + receiving_s) / outcome.wall_s, 6),
        "server_evaluating": round(server.state.evaluating_s / outcome.wall_s, 6),
        "workers_busy": round(server.state.compute_s / workers_s(server.state, outcome.wall_s, workers), 6),
        "server_bytes": server_bytes,
        "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "params": params,
        "hosts": len(set(world.hosts)),
        "cores": round(world.cores, 3),
        "refused": server.state.refused,
        "discarded": outcome.discarded,
        "stopped": outcome.reason,
        "model_sha256": hashlib.sha256(server.final.cpu().numpy().data).hexdigest(),
    }


def write(result: dict[str, object], path: Path) -> None:
    """Write the result as JSON, whole or not at all. Raises OSError."""
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(result, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def over_clients(tests: np.ndarray, metrics: Metrics) -> dict[str, dict[str, float | None]]:
    """Mean, spread (standard deviation) and worst of each metric over the clients, each in its latest test.

    Args:
        tests: (n,), `client_evaluations` of a record; a value that is not a number does not count.
        metrics: their columns.
    """
    _, first = np.unique(tests["client"][::-1], return_index=True)
    latest, found = tests[::-1][first], {}
    for name, metric in metrics.by_name.items():
        values = latest[name][~np.isnan(latest[name])]
        three = (values.mean(), values.std(), metric.worst_of(values)) if len(values) else (math.nan,) * 3
        found[name] = dict(zip(("mean", "spread", "worst"), map(_number, map(float, three)), strict=True))
    return found


def workers_s(state: ServerState, wall_s: float, workers: float) -> float:
    """Wall time of training, summed over the workers: those of now, and those before, in a resumed run.

    Args:
        state: of the server.
        wall_s: wall time of training.
        workers: their number now, or its mean, where clients come and go.
    """
    return state.workers_before_s + workers * (wall_s - state.wall_before_s)


def updates_at_end(run_dir: Path) -> int:
    """How many updates a run had when it ended last; 0 if it has not ended yet.

    Raises:
        ValueError: the result of the run cannot be read.
    """
    path = run_dir / "result.json"
    if not os.path.lexists(path):
        return 0
    return int(read_numbers(path, ("updates",), "move it away")["updates"])


def _number(value: float) -> float | None:
    """Rounded; None if it is not finite, for which JSON has no word."""
    return round(value, 6) if math.isfinite(value) else None


def show(result: dict[str, object], updates: np.ndarray, num_clients: int) -> None:
    """Print the result for people, and as one line of JSON, the last line of standard output.

    Of more than `CLIENTS_SHOWN` clients the table has those with the most and those with the fewest updates, a client
    without any included, and one line for all others.

    Args:
        result: the figures.
        updates: record.UPDATE (n,), the rows of the record.
        num_clients: number of clients.
    """
    console = Screen(highlight=False, soft_wrap=True, color_system=None, force_terminal=False, width=120)
    updates = updates[updates["accepted"]]
    shown = fastest_and_slowest(np.bincount(updates["client"], minlength=num_clients), CLIENTS_SHOWN)
    line_of = np.full(num_clients, len(shown))  # by client: its line of the table, the last for those not shown
    line_of[shown] = np.arange(len(shown))
    line = line_of[updates["client"]]
    names = [str(client) for client in shown] + [f"{num_clients - len(shown)} others"] * (len(shown) < num_clients)
    by_client = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("client", "updates", "share", "K", "gamma", "eta", "compute s", "wait s"):
        by_client.add_column(column, justify="right")
    for number, name in enumerate(names):
        own = np.flatnonzero(line == number)
        fields = ("epochs", "gamma", "eta", "compute_s", "wait_s") if len(own) else ()
        medians = [f"{np.median(updates[field][own]):.4g}" for field in fields]
        by_client.add_row(name, str(len(own)), f"{len(own) / max(len(updates), 1):.1%}", *medians)
    console.print(by_client)
    most = f"; the {CLIENTS_SHOWN} clients with the most and the fewest updates" * (len(shown) < num_clients)
    console.print(f"(K, gamma, eta and seconds: medians over the client's updates{most})\n")
    rows = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for key, value in result.items():
        for name, one in value.items() if isinstance(value, dict) else [(key, value)]:
            if isinstance(one, dict):
                rows.add_row(f"{name} of the clients", ", ".join(f"{word} {number}" for word, number in one.items()))
            else:
                rows.add_row(name, str(one))
    console.print(rows)
    console.print(json.dumps(result), markup=False, emoji=False)
