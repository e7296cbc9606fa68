"""Figures of runs and studies, drawn only from the records of runs."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncfeded.store import record

if TYPE_CHECKING:  # drawing needs no torch
    from asyncfeded.studies.study import StudyGrid, StudyRow

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D31", "#000000")
"""The palette of Okabe and Ito, for colour-blind readers too; it repeats with other dashes if there are more clients."""
POINTS = 150
"""Largest number of points in a client's line."""
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.constrained_layout.use": True,
}


def plot_run(run_dir: Path, output: Path) -> Path:
    """Draw accuracy and loss over time, and the updates, K and gamma of each client over time.

    Args:
        run_dir: folder of a run, finished or not.
        output: the PNG.

    Returns:
        `output`.

    Raises:
        ValueError: there is no record, it holds nothing yet, or matplotlib is not installed.
    """
    plt = pyplot()
    updates, evaluations, _ = record.read_record(run_dir)
    if not len(updates) or not len(evaluations):
        raise ValueError(
            f"{run_dir}: the record holds {len(updates)} updates and {len(evaluations)} evaluations, nothing to plot"
        )
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(11, 7), sharex=True)
        (score, counts), (local, stale) = axes
        score.plot(evaluations["time_s"], evaluations["accuracy"], color=COLORS[0], marker=".", label="accuracy")
        last = evaluations[-1]
        label = {"xytext": (0, -14), "textcoords": "offset points", "ha": "right"}
        score.annotate(f"{last['accuracy']:.4f}", (last["time_s"], last["accuracy"]), **label)
        score.set(title="Test accuracy and loss of the global model", ylabel="accuracy", ylim=(0, 1.02))
        loss = score.twinx()
        loss.plot(evaluations["time_s"], evaluations["loss"], color=COLORS[5], linestyle=":", label="loss")
        loss.set(ylabel="loss (nats)", ylim=(0, None))
        loss.spines["right"].set_visible(True)
        loss.grid(visible=False)
        score.legend(handles=[*score.lines, *loss.lines], loc="center right", frameon=False)
        merged = updates[updates["accepted"]]
        _draw_clients(merged, counts, local, stale)
        return save(figure, output, f"{run_dir.name}: {len(merged)} updates in {updates['time_s'][-1]:.1f} s")


def plot_study(grid: StudyGrid, rows: Sequence[StudyRow], folder: Path, authors: Path | None = None) -> list[Path]:
    """Draw the figures of a study for each task.

    Accuracy over time by rule (mean and range over the seeds) at each error probability; maximum accuracy and time to each
    target over the error probability; K and gamma of each client over time in the first rule's first run.

    Args:
        grid: grid of the study.
        rows: its finished runs.
        folder: folder for the PNGs.
        authors: a CSV of the authors' figures (task, method, error_probability, max_test_accuracy_mean, target_i,
            median_s_to_target_i), drawn beside ours where task and method are the labels of the grid.

    Returns:
        The PNGs.

    Raises:
        ValueError: matplotlib is not installed, or the authors' CSV cannot be read.
    """
    plt = pyplot()
    published = _published(authors) if authors else []
    made = []
    with plt.rc_context(STYLE):
        for task, plan in grid.tasks.items():
            of_task = [row for row in rows if row.run.task == task]
            if not of_task:
                continue
            levels = [p for p in grid.error_probabilities if any(row.run.error_probability == p for row in of_task)]
            color = {rule: COLORS[i % len(COLORS)] for i, rule in enumerate(grid.rules)}

            figure, axes = plt.subplots(1, len(levels), figsize=(3.6 * len(levels) + 1, 3.8), sharey=True, squeeze=False)
            for axis, p in zip(axes[0], levels, strict=True):
                for rule in grid.rules:
                    curves = [_curve(row) for row in of_task if (row.run.rule, row.run.error_probability) == (rule, p)]
                    if curves:
                        times = curves[0][0]
                        stacked = np.array([np.interp(times, *curve) for curve in curves])
                        axis.plot(times, stacked.mean(axis=0), color=color[rule], label=rule, linewidth=1.3)
                        axis.fill_between(times, stacked.min(axis=0), stacked.max(axis=0), color=color[rule], alpha=0.15)
                axis.set(title=f"p = {p:g}", xlabel="time (s)")
            axes[0][0].set(ylabel="test accuracy")
            axes[0][0].legend(frameon=False, fontsize=7)
            made.append(save(figure, folder / f"{task}-accuracy.png", f"{task}: mean and range over the seeds"))

            figure, axes = plt.subplots(
                1, 1 + len(plan.targets), figsize=(3.6 * (1 + len(plan.targets)) + 1, 3.8), squeeze=False
            )
            for rule in grid.rules:
                mine = [[row for row in of_task if (row.run.rule, row.run.error_probability) == (rule, p)] for p in levels]
                axes[0][0].errorbar(
                    levels,
                    [np.mean([row.max_accuracy for row in some]) if some else np.nan for some in mine],
                    [np.std([row.max_accuracy for row in some]) if some else np.nan for some in mine],
                    color=color[rule], marker="o", markersize=3, capsize=2, label=rule,
                )  # fmt: skip
                for i, axis in enumerate(axes[0][1:]):
                    medians = [np.median([row.seconds_to[i] for row in some]) if some else np.nan for some in mine]
                    reached = np.where(np.isfinite(medians), medians, np.nan)
                    axis.plot(levels, reached, color=color[rule], marker="o", markersize=3)
            for line in (line for line in published if line["task"] == task and line["method"] in color):
                p, mark = float(line["error_probability"]), {"marker": "x", "color": color[line["method"]], "linestyle": ""}
                axes[0][0].plot(p, float(line["max_test_accuracy_mean"]) / 100, **mark)
                for target, axis in zip(plan.targets, axes[0][1:], strict=True):
                    seconds = _published_seconds(line, target)
                    axis.plot(p, seconds, **mark)
            axes[0][0].set(title="maximum accuracy", xlabel="error probability p")
            axes[0][0].legend(frameon=False, fontsize=7)
            for target, axis in zip(plan.targets, axes[0][1:], strict=True):
                axis.set(title=f"seconds to {target:.4g}", xlabel="error probability p")
                axis.set_ylim(bottom=0)
                if not any(np.isfinite(line.get_ydata()).any() for line in axis.lines):
                    axis.text(0.5, 0.5, "reached by none", transform=axis.transAxes, ha="center")
            for axis in axes[0]:
                axis.set_xlim(min(levels) - 0.05, max(levels) + 0.05)
            crosses = "; crosses: the authors' figures" if published else ""
            made.append(save(figure, folder / f"{task}-errors.png", f"{task}: over the error probability{crosses}"))

            first = next(row for row in of_task if row.run.rule == next(iter(grid.rules)))
            updates = record.read_record(first.run_dir).updates
            figure, (local, stale) = plt.subplots(1, 2, figsize=(11, 3.8))
            _draw_clients(updates[updates["accepted"]], None, local, stale)
            made.append(save(figure, folder / f"{task}-clients.png", f"{first.run.name}: K and gamma of each client"))
    return made


def _curve(row: StudyRow) -> tuple[np.ndarray, np.ndarray]:
    evaluations = record.read_record(row.run_dir).evaluations
    return evaluations["time_s"], evaluations["accuracy"]


def _published(path: Path) -> list[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        raise ValueError(f"cannot read the authors' figures {path}: {error.strerror}") from None


def _published_seconds(line: dict[str, str], target: float) -> float:
    for i in range(1, 5):
        if line.get(f"target_{i}") and abs(float(line[f"target_{i}"]) / 100 - target) < 1e-9:
            text = line[f"median_s_to_target_{i}"]
            return float(text) if text != "never" else np.nan
    return np.nan


def _draw_clients(merged: np.ndarray, counts: Any, local: Any, stale: Any) -> None:  # noqa: ANN401 matplotlib's axes
    """Draw updates, K and gamma of each client over time, each on its own axes; `counts` may be None."""
    clients = np.unique(merged["client"])
    many = len(clients) > 2 * len(COLORS)
    for i, client in enumerate(clients):
        rows = merged[merged["client"] == client]
        line = {
            "color": COLORS[i % len(COLORS)],
            "linestyle": ("-", "--", ":", "-.")[i // len(COLORS) % 4],
            "linewidth": 0.8 if many else 1.3,
            "label": f"client {client}",
        }
        if counts is not None:
            counts.plot(rows["time_s"], np.arange(1, len(rows) + 1), **line)
        # K belongs to the round that ended at that time.
        local.step(_grouped(rows["time_s"], np.mean), _grouped(rows["epochs"], np.mean), where="pre", **line)
        shown = rows[rows["gamma"] > 0]  # a fresh update has none to show on a logarithmic axis
        if len(shown) <= POINTS:
            dots = {"linestyle": "", "marker": ".", "markersize": 3, "alpha": 0.35}
            stale.plot(shown["time_s"], shown["gamma"], **(line | dots | {"label": ""}))
            stale.plot(shown["time_s"], _smooth(shown["gamma"]), **line)
        else:
            stale.plot(_grouped(shown["time_s"], np.mean), _grouped(shown["gamma"], np.median), **line)
    many_rows = len(merged) > POINTS * len(clients)
    local.set(title="Local epochs of each client" + ", mean of some rounds" * many_rows, ylabel="K", xlabel="time (s)")
    local.yaxis.get_major_locator().set_params(integer=True)
    over = "of some updates" if many_rows else "of 9"
    stale.set(title=f"Staleness of each client's updates (line: median {over})", ylabel="gamma", xlabel="time (s)")
    if np.any(merged["gamma"] > 0):
        stale.set_yscale("log")
    if counts is not None:
        counts.set(title="Updates of each client", ylabel="updates")
    if len(clients) and not many:
        if counts is None:
            stale.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        else:
            counts.legend(frameon=False, fontsize=8)


def pyplot() -> ModuleType:
    """Import matplotlib, without a display. Raises ValueError if it is not installed."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError("plots need matplotlib: pip install 'asyncfeded[plots]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def save(figure: Any, path: Path, title: str) -> Path:  # noqa: ANN401 matplotlib's figure
    """Write a figure under its title and close it. Returns the path; raises ValueError if it cannot be written."""
    figure.suptitle(title, fontsize=11)
    try:
        figure.savefig(path, dpi=130)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from None
    finally:
        pyplot().close(figure)
    return path


def _grouped(values: np.ndarray, reduce: Callable[[np.ndarray], np.floating[Any]]) -> np.ndarray:
    """The values unchanged, or at most POINTS groups of neighbours, each reduced to one number."""
    size = -(-len(values) // POINTS)
    return np.array([reduce(values[i : i + size]) for i in range(0, len(values), size)]) if size > 1 else values


def _smooth(values: np.ndarray, width: int = 9) -> np.ndarray:
    """Running median, shorter at the ends."""
    half = width // 2
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])
