"""The result of a finished run: its figures, printed for people and as one line of JSON."""

import hashlib
import json
import math
import resource
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from asyncfeded.mpi.world import World
from asyncfeded.store import record
from asyncfeded.training.server import Outcome, Server


def figures(
    server: Server, outcome: Outcome, run_dir: Path, server_bytes: int, receiving_s: float, world: World
) -> dict[str, object]:
    """The figures of a finished run, taken from its record where the record has them."""
    gamma = record.read_record(run_dir).updates["gamma"]
    gamma = gamma[np.isfinite(gamma)]
    return {
        "run_dir": str(run_dir),
        "updates": server.state.updates,
        "seconds": round(outcome.seconds, 3),
        "wall_s": round(outcome.wall_s, 3),
        "updates_per_s": round(server.state.updates / outcome.seconds, 3),
        "accuracy": _number(outcome.score.accuracy),
        "loss": _number(outcome.score.loss),
        "gamma_median": _number(float(np.median(gamma)) if len(gamma) else math.nan),
        "server_busy": round((server.state.busy_s + receiving_s) / outcome.wall_s, 6),
        "server_evaluating": round(server.state.evaluating_s / outcome.wall_s, 6),
        "workers_busy": round(server.state.compute_s / ((world.size - 1) * outcome.wall_s), 6),
        "server_bytes": server_bytes,
        "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "params": server.state.model.layout.num_params,
        "hosts": len(set(world.hosts)),
        "cores": round(world.cores, 3),
        "refused": server.state.refused,
        "discarded": outcome.discarded,
        "stopped": outcome.reason,
        "model_sha256": hashlib.sha256(server.state.model.x.cpu().numpy().data).hexdigest(),
    }


def _number(value: float) -> float | None:
    """Rounded; None if it is not finite, for which JSON has no word."""
    return round(value, 6) if math.isfinite(value) else None


def show(result: dict[str, object], run_dir: Path) -> None:
    """Print the result for people, and as one line of JSON, the last line of standard output."""
    console = Console(highlight=False, soft_wrap=True, color_system=None, force_terminal=False, width=120)
    updates = record.read_record(run_dir).updates
    updates = updates[updates["accepted"]]
    by_client = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("client", "updates", "share", "K", "gamma", "eta", "compute s", "wait s"):
        by_client.add_column(column, justify="right")
    for who in np.unique(updates["client"]):
        own = updates[updates["client"] == who]
        medians = [f"{np.median(own[field]):.3g}" for field in ("gamma", "eta", "compute_s", "wait_s")]
        by_client.add_row(
            str(who), str(len(own)), f"{len(own) / len(updates):.1%}", f"{np.median(own['epochs']):g}", *medians
        )
    console.print(by_client)
    console.print("(K, gamma, eta and seconds: medians over the client's updates)\n")
    rows = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for key, value in result.items():
        rows.add_row(key, str(value))
    console.print(rows)
    print(json.dumps(result), flush=True)  # noqa: T201
