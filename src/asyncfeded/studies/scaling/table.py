"""The table of a scaling study, made only from the records and results of its runs."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asyncfeded.files.plain import read_numbers
from asyncfeded.store import record
from asyncfeded.studies.jobs import AGAIN, is_done, outcome
from asyncfeded.studies.scaling.grid import ScalingGrid, ScalingRun, expand
from asyncfeded.studies.statistics import quartiles

RESULTS = ("params", "updates", "server_busy", "peak_rss_bytes", "hosts", "cores", "wall_s")
"""The figures of a result that the table needs."""


class ScalingRow(NamedTuple):
    """The line of a run in the table.

    Rates are measured after warm-up, which lasts until the first update of every client has been taken.
    """

    run: ScalingRun
    params: int
    updates: int
    """Number of merged updates, warm-up included."""
    updates_per_s: float
    samples_per_s: float
    """Samples per second that clients trained on: it measures the work even if K changes."""
    seconds_to_target: float
    """Seconds from sending the first model; infinity if it was not reached, NaN if there is no target."""
    server_busy: float
    """Fraction of the run's time: the processor time of receiving, measuring, merging, replying and recording."""
    client_wait: float
    """Fraction of the clients' time between the end of training and the next model: transfers, queue and service."""
    queue: np.ndarray
    """Mean and maximum (2,) of the number of updates that were waiting when another was taken."""
    gamma: np.ndarray
    """Quartiles (3,)."""
    tau: np.ndarray
    """Quartiles (3,)."""
    bytes_per_s: float
    """Bytes per second of updates and replies."""
    peak_rss_bytes: int
    """Peak memory of the server's process."""
    hosts: int
    cores: float
    """Cores of a rank; of a core that several ranks share, its part."""
    service_s: float
    """Processor time of the server for an update."""
    wait_s: float
    """Mean time that a client waits after an update."""
    think_s: np.ndarray
    """(n,) for each update, from receiving the model to sending the update."""


class Speedup(NamedTuple):
    """A row compared with the rows of the fewest clients; NaN if there are none."""

    speedup: float
    """Samples per second, divided by that of the fewest clients (median over the seeds)."""
    efficiency: float
    """Speed-up divided by the factor between the numbers of clients."""


def collect(grid: ScalingGrid, runs: Sequence[ScalingRun], out: Path) -> list[ScalingRow]:
    """A row for each finished run."""
    folder = out / "runs"
    return [measure(run, folder / run.name, grid.target) for run in runs if is_done(folder, run.name)]


def measure(run: ScalingRun, run_dir: Path, target: float) -> ScalingRow:
    """The row of a run.

    Args:
        run: the run.
        run_dir: its folder.
        target: value of the metric whose time is measured; 0: none.
    """
    result = read_numbers(run_dir / "result.json", RESULTS, AGAIN)
    tables = record.read_record(run_dir)
    updates, evaluations, metrics = tables.updates, tables.evaluations, tables.metrics
    if not len(updates):
        raise ValueError(f"{run_dir}: its record holds no update; {AGAIN}")
    warm = int(np.unique(updates["client"], return_index=True)[1].max())
    steady = updates[warm + 1 :]
    seconds = updates["time_s"][-1] - updates["time_s"][warm] if len(steady) else np.nan
    merged = steady[steady["accepted"]]
    cycle_s, wait_s = _cycles(updates)
    reached = evaluations["time_s"][metrics.of_goal.reaches(evaluations[metrics.goal], target)]
    return ScalingRow(
        run,
        params=int(result["params"]),
        updates=int(result["updates"]),
        updates_per_s=float(len(merged) / seconds),
        samples_per_s=float(merged["samples"].sum() / seconds),
        seconds_to_target=(float(reached[0]) if len(reached) else np.inf) if target else np.nan,
        server_busy=float(result["server_busy"]),
        client_wait=float(wait_s.sum() / cycle_s.sum()) if len(cycle_s) else np.nan,
        queue=np.array([steady["queue"].mean(), steady["queue"].max()]) if len(steady) else np.full(2, np.nan),
        gamma=quartiles(merged["gamma"]),
        tau=quartiles(merged["tau"]),
        bytes_per_s=float(steady["bytes"].sum() / seconds),
        peak_rss_bytes=int(result["peak_rss_bytes"]),
        hosts=int(result["hosts"]),
        cores=float(result["cores"]),
        service_s=float(result["server_busy"] * result["wall_s"] / len(updates)),
        wait_s=float(wait_s.mean()) if len(wait_s) else np.nan,
        think_s=np.maximum(cycle_s - wait_s, 0.0),
    )


def compare(grid: ScalingGrid, rows: Sequence[ScalingRow]) -> list[Speedup]:
    """Compare each row with the rows of the fewest clients of its line."""
    made, fewest = [], grid.clients[0]
    for row in rows:
        first = [one.samples_per_s for one in rows if (one.run.line, one.run.clients) == (row.run.line, fewest)]
        speedup = row.samples_per_s / float(np.median(first)) if first else np.nan
        made.append(Speedup(speedup, speedup * fewest / row.run.clients))
    return made


def write_csv(grid: ScalingGrid, rows: Sequence[ScalingRow], out: Path) -> None:
    """Write table.csv, one line for each run of the grid; it is empty where a run is not done or a figure unknown."""
    done = {(row.run.line, row.run.name): (row, one) for row, one in zip(rows, compare(grid, rows), strict=True)}
    lines = []
    for run in expand(grid):
        where = {"scaling": run.scaling, "model": run.model, "rule": run.rule, "ranks_per_node": run.ranks_per_node}
        where |= {"nodes": run.nodes, "clients": run.clients, "seed": run.seed}
        where |= {"config_sha256": run.config.digest().hex(), "outcome": outcome(out / "runs", run.name)}
        lines.append(where | (_figures(grid, *done[run.line, run.name]) if (run.line, run.name) in done else {}))
    with (out / "table.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, max(lines, key=len), restval="", lineterminator="\n")
        writer.writeheader()
        for line in lines:
            writer.writerow({key: _cell(value) for key, value in line.items()})


def _figures(grid: ScalingGrid, row: ScalingRow, against: Speedup) -> dict[str, Any]:
    """The figures of a run by column."""
    numbers = row._asdict()
    rates = {"updates_per_s": row.updates_per_s, "samples_per_s": row.samples_per_s, **against._asdict()}
    aim = {
        "metric": row.run.config.evaluation.metric,
        "target": grid.target or "",
        "seconds_to_target": row.seconds_to_target,
    }
    shares = {"server_busy": row.server_busy, "client_wait": row.client_wait}
    queue = {"queue_mean": row.queue[0], "queue_max": row.queue[1]}
    stale = {f"{name}_{q}": numbers[name][i] for name in ("gamma", "tau") for i, q in enumerate(("q1", "median", "q3"))}
    rest = ("bytes_per_s", "peak_rss_bytes", "hosts", "cores", "service_s", "wait_s")
    line: dict[str, Any] = {"params": row.params, "updates": row.updates} | rates | aim | shares | queue | stale
    line |= {name: numbers[name] for name in rest}
    return line | {"think_s": row.think_s.mean() if len(row.think_s) else np.nan}


def to_markdown(grid: ScalingGrid, rows: Sequence[ScalingRow]) -> str:
    """A table for each line of the figures, medians over the seeds, with a row for every number of clients of the grid."""
    lines = [grid.caption.strip(), ""] if grid.caption else []
    comparisons = compare(grid, rows)
    for line in dict.fromkeys(run.line for run in expand(grid)):
        mine = [(row, against) for row, against in zip(rows, comparisons, strict=True) if row.run.line == line]
        lines += [f"### {title(line, mine[0][0].params if mine else 0)}", ""]
        goal = mine[0][0].run.config.evaluation.metric if mine else ""
        target = f" s to {' '.join(filter(None, (goal, f'{grid.target:g}')))} |" if grid.target else ""
        head = "clients | nodes | runs | updates/s | speed-up | efficiency | server busy | clients wait | queue: mean, max"
        lines += [f"| {head} | gamma | tau | MB/s | server's MB |{target}", "|" + "---:|" * (13 + bool(grid.target))]
        for clients in grid.clients:
            some = [pair for pair in mine if pair[0].run.clients == clients]
            cells = [str(clients), str(some[0][0].run.nodes) if some else "", f"{len(some)} of {len(grid.seeds)}"]
            cells += _cells([row for row, _ in some], [against for _, against in some], bool(grid.target)) if some else []
            lines.append("| " + " | ".join(cells + [""] * (13 + bool(grid.target) - len(cells))) + " |")
        if all(np.isnan(against.speedup) for _, against in mine):
            lines += ["", f"There is no speed-up: no run of {grid.clients[0]} clients is done, with which it would compare."]
        lines.append("")
    return "\n".join(lines)


def title(line: tuple[str, str, str, int], params: int) -> str:
    """The title of a line of the figures; params is 0 where no run is done."""
    scaling, model, rule, ranks_per_node = line
    nodes = f", {ranks_per_node} ranks per node" if ranks_per_node else ""
    return f"{scaling} scaling, {model}{f' ({params:,} parameters)' if params else ''}, {rule}{nodes}"


def _cells(rows: Sequence[ScalingRow], against: Sequence[Speedup], targeted: bool) -> list[str]:
    """The figures of a row: medians over runs that differ by their seed."""

    def middle(values: Sequence[float]) -> float:
        return float(np.median(values))

    gamma, tau = (np.median([getattr(row, name) for row in rows], axis=0) for name in ("gamma", "tau"))
    seconds = middle([row.seconds_to_target for row in rows])
    speedup, efficiency = middle([one.speedup for one in against]), middle([one.efficiency for one in against])
    cells = [
        f"{middle([row.updates_per_s for row in rows]):.4g}",
        f"{speedup:.2f}" if np.isfinite(speedup) else "",
        f"{efficiency:.0%}" if np.isfinite(efficiency) else "",
        f"{middle([row.server_busy for row in rows]):.1%}",
        f"{middle([row.client_wait for row in rows]):.1%}",
        f"{middle([row.queue[0] for row in rows]):.2f}, {middle([row.queue[1] for row in rows]):.0f}",
        f"{gamma[1]:.2f} ({gamma[0]:.2f} to {gamma[2]:.2f})",
        f"{tau[1]:.0f} ({tau[0]:.0f} to {tau[2]:.0f})",
        f"{middle([row.bytes_per_s for row in rows]) / 1e6:.3g}",
        f"{middle([row.peak_rss_bytes for row in rows]) / 1e6:.0f}",
    ]
    return cells + [f"{seconds:.2f}" if np.isfinite(seconds) else "never"] * targeted


def _cycles(updates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Seconds (n,) between two updates of a client, as taken, and how long it waited in them; without first updates.

    The time that an update waited before it was taken counts for the next update; over a run that makes no difference.
    """
    rows = updates[np.lexsort((updates["time_s"], updates["client"]))]
    again = rows["client"][1:] == rows["client"][:-1]
    return np.diff(rows["time_s"])[again], rows["wait_s"][1:][again]


def _cell(value: object) -> object:
    if isinstance(value, float):  # numpy's too
        return f"{value:.6g}" if np.isfinite(value) else ""
    return value
