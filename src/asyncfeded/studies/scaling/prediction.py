"""Predicts runs of many clients from runs of few, and compares the predictions with runs that were not used for them."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asyncfeded.studies.scaling.grid import ScalingGrid
from asyncfeded.studies.scaling.queueing import Load, Times, bound, fit, mean_values, saturation
from asyncfeded.studies.scaling.simulation import Simulated, simulate
from asyncfeded.studies.scaling.table import ScalingRow, title


class PredictedPoint(NamedTuple):
    """Measured and predicted figures for one number of clients."""

    clients: int
    measured: Load | None
    """Median over the seeds; None where there is no run."""
    fitted: bool
    """Whether the times were fitted on the runs of so many clients."""
    analysis: Load
    """By mean value analysis."""
    simulated: Simulated

    def error(self, predicted: float) -> float:
        """Relative error of the predicted updates per second; NaN if nothing was measured."""
        return predicted / self.measured.updates_per_s - 1 if self.measured else np.nan


class Prediction(NamedTuple):
    """The prediction of one line of the figures."""

    line: tuple[str, str, str, int]
    params: int
    times: Times
    saturation: float
    """N*."""
    points: list[PredictedPoint]


def predict(grid: ScalingGrid, rows: Sequence[ScalingRow], say: Callable[[str], None]) -> list[Prediction]:
    """Fit and predict every line of the study that has runs for all numbers of clients in the fit.

    Args:
        grid: grid of the study.
        rows: its finished runs.
        say: shows a line about progress.
    """
    made = []
    for line in dict.fromkeys(row.run.line for row in rows):
        mine = [row for row in rows if row.run.line == line]
        basis = [row for row in mine if row.run.clients in grid.fitted and len(row.think_s)]
        name = title(line, mine[0].params)
        if {row.run.clients for row in basis} < set(grid.fitted):
            say(f"{name}: not predicted, runs of {' and '.join(map(str, grid.fitted))} clients are missing")
            continue
        times, points = fit(basis, grid.clients[0]), []
        for clients in sorted({*grid.clients, *grid.predict}):
            some = [row for row in mine if row.run.clients == clients]
            measured = None
            if some:
                measured = Load(*(float(np.median([getattr(row, field) for row in some])) for field in Load._fields))
            simulated = simulate(times, basis[0].run.config, clients)
            points.append(PredictedPoint(clients, measured, clients in grid.fitted, mean_values(times, clients), simulated))
        made.append(Prediction(line, mine[0].params, times, saturation(times), points))
        say(f"{name}: the server is saturated from {made[-1].saturation:,.0f} clients on")
    return made


def write_csv(predictions: Sequence[Prediction], path: Path) -> None:
    """A line for each point of each prediction."""
    head = ["scaling", "model", "rule", "ranks_per_node", "service_s", "latency_s", "think_s", "saturation"]
    head += ["clients", "fitted"]
    head += [f"{what}_{field}" for what in ("measured", "analysis", "simulated") for field in Load._fields]
    head += ["bound_updates_per_s", "simulated_queue"]
    head += [f"simulated_{name}_{quartile}" for name in ("gamma", "tau") for quartile in ("q1", "median", "q3")]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for line, _, times, clients_max, points in predictions:
            for point in points:
                cells = [*line, times.service_s, times.latency_s, float(times.think(point.clients).mean()), clients_max]
                cells += [point.clients, point.fitted, *(point.measured or ("", "")), *point.analysis]
                done = point.simulated
                cells += [done.updates_per_s, done.client_wait, bound(times, point.clients), done.queue]
                cells += [*done.gamma, *done.tau]
                writer.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in cells])


def to_markdown(predictions: Sequence[Prediction]) -> str:
    """A table for each prediction, with its errors."""
    lines = []
    for one in predictions:
        times = one.times
        fitted = ", ".join(str(point.clients) for point in one.points if point.fitted)
        tests = [point for point in one.points if point.measured and not point.fitted]
        divided = f" with the fewest clients ({times.divided}), divided by more" if times.divided else ""
        lines += [f"### Predicted: {title(one.line, one.params)}", ""]
        lines.append(
            f"From the runs of {fitted} clients: S = {1e3 * times.service_s:.3g} ms, L = {1e3 * times.latency_s:.3g} ms, "
            f"Z = {1e3 * times.think_s.mean():.4g} ms{divided}; **N\\* = {one.saturation:,.0f}**."
        )
        for name, values in (
            ("mean value analysis", [point.error(point.analysis.updates_per_s) for point in tests]),
            ("simulation", [point.error(point.simulated.updates_per_s) for point in tests]),
        ):
            if tests:
                errors = ", ".join(f"{value:+.1%} at {point.clients}" for value, point in zip(values, tests, strict=True))
                lines.append(f"Error of the updates/s on runs that were not used, {name}: {errors}.")
        head = "clients | updates/s: measured | analysis | simulation | clients wait: measured | analysis | simulation"
        lines += ["", f"| {head} | queue | gamma | tau |", "|" + "---:|" * 10]
        for point in one.points:
            rate, wait = (f"{point.measured[0]:.4g}", f"{point.measured[1]:.1%}") if point.measured else ("", "")
            analysis, done = point.analysis, point.simulated
            cells = [str(point.clients), rate + " (fitted)" * point.fitted]
            cells += [f"{analysis.updates_per_s:.4g}", f"{done.updates_per_s:.4g}"]
            cells += [wait, f"{analysis.client_wait:.1%}", f"{done.client_wait:.1%}"]
            cells += [f"{done.queue:.4g}", f"{done.gamma[1]:.3g}", f"{done.tau[1]:.4g}"]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)
