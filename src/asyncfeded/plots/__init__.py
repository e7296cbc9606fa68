"""Figures of runs and studies, drawn only from the records of runs."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncfeded.files.plain import read_csv
from asyncfeded.metric import Metric
from asyncfeded.plots.clients import COLORS, POINTS, draw_clients, draw_tests
from asyncfeded.store import record

if TYPE_CHECKING:  # drawing needs no torch
    from asyncfeded.studies.study import StudyGrid, StudyRow

MAKER = "drawn by asyncfeded"
"""What a picture says of its origin."""
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "figure.constrained_layout.use": True,
}


def plot_run(run_dir: Path, output: Path) -> Path:
    """Draw the metrics over time, and the updates, K and gamma of the clients over time (`draw_clients`).

    The first panel has the metric of the goal and one more; each further one has a panel of its own, and so have the
    clients' own tests.

    Args:
        run_dir: folder of a run, finished or not.
        output: the PNG.

    Returns:
        `output`.

    Raises:
        ValueError: there is no record, it holds nothing yet, or matplotlib is not installed.
    """
    plt = pyplot()
    tables = record.read_record(run_dir)
    updates, evaluations, metrics = tables.updates, tables.evaluations, tables.metrics
    if not len(updates) or not len(evaluations):
        raise ValueError(
            f"{run_dir}: the record holds {len(updates)} updates and {len(evaluations)} evaluations, nothing to plot"
        )
    with plt.rc_context(STYLE):
        beside, *alone = [name for name in metrics.by_name if name != metrics.goal] or [""]
        tests, num_clients = tables.client_evaluations, len(np.asarray(tables.attributes["clients"]))
        rows = 2 + -(-(len(alone) + bool(len(tests))) // 2)
        figure, axes = plt.subplots(rows, 2, figsize=(11, 3.5 * rows), sharex=True)
        (score, counts), *more, (local, stale) = axes
        both = f"{metrics.goal} and {beside}" if beside else metrics.goal
        score.set_title(f"Test {both} of the global model")
        draw_metric(score, evaluations, metrics.goal, metrics.of_goal, color=COLORS[0])
        if beside:
            second = score.twinx()
            draw_metric(second, evaluations, beside, metrics.by_name[beside], color=COLORS[5], linestyle=":")
            second.spines["right"].set_visible(True)
            second.grid(visible=False)
            score.legend(handles=[*score.lines, *second.lines], loc="best", frameon=False)
        panels = [axis for row in more for axis in row]
        for name, axis in zip(alone, panels, strict=False):
            draw_metric(axis, evaluations, name, metrics.by_name[name], color=COLORS[0])
            axis.set_title(f"Test {name}")
        rest = panels[len(alone) :]
        if len(tests):
            draw_tests(tests, num_clients, metrics, rest.pop(0))
        for axis in rest:
            axis.set_visible(False)
        merged = updates[updates["accepted"]]
        draw_clients(merged, num_clients, counts, local, stale)
        _check_free(output)
        return save(figure, output, f"{run_dir.resolve().name}: {len(merged)} updates in {updates['time_s'][-1]:.1f} s")


def draw_metric(axis: Any, evaluations: np.ndarray, name: str, metric: Metric, **look: str) -> None:  # noqa: ANN401
    """Draw a metric over time, with its last value unless it is a dashed line. A fraction has an axis from 0 to 1."""
    values, last = evaluations[name], evaluations[[name, "time_s"]][-1]
    dot = "." if len(evaluations) <= POINTS and "linestyle" not in look else ""
    axis.plot(evaluations["time_s"], values, marker=dot, label=name, **look)
    axis.set_ylabel(metric.label(name))
    if metric.is_fraction:
        axis.set_ylim(0, 1.02)
    elif metric.best == "min" and not (values < 0).any():
        axis.set_ylim(0, None)
    if np.isfinite(last[name]) and dot:
        label = {"xytext": (0, -14), "textcoords": "offset points", "ha": "right"}
        axis.annotate(metric.text(last[name]), (last["time_s"], last[name]), **label)


def plot_study(grid: StudyGrid, rows: Sequence[StudyRow], folder: Path, authors: Path | None = None) -> list[Path]:
    """Draw the figures of a study for each task.

    The metric of the goal over time by rule (mean and range over the seeds) at each error probability; its best value and
    the time to each target over the error probability; K and gamma of each client over time in the first rule's first run,
    if it has one. The legend names every rule of the grid, and says how many of its runs are done where some are not.

    Args:
        grid: grid of the study.
        rows: its finished runs.
        folder: folder for the PNGs.
        authors: a CSV of the authors' figures (task, method, error_probability, max_test_accuracy_mean, target_i,
            median_s_to_target_i; accuracies in percent), drawn beside ours where task and method are the labels of the grid
            and the goal is accuracy.

    Returns:
        The PNGs.

    Raises:
        ValueError: matplotlib is not installed, or the authors' CSV cannot be read.
    """
    plt = pyplot()
    published = read_authors(authors) if authors else []
    made = []
    with plt.rc_context(STYLE):
        for task, plan in grid.tasks.items():
            of_task = [row for row in rows if row.run.task == task]
            if not of_task:
                continue
            goal, metric = of_task[0].metrics.goal, of_task[0].metrics.of_goal
            levels = [p for p in grid.error_probabilities if any(row.run.error_probability == p for row in of_task)]
            color = {rule: COLORS[i % len(COLORS)] for i, rule in enumerate(grid.rules)}
            done, all_runs = Counter(row.run.rule for row in of_task), len(grid.error_probabilities) * len(grid.seeds)
            label = {rule: rule + f" ({done[rule]} of {all_runs} runs)" * (done[rule] < all_runs) for rule in grid.rules}

            figure, axes = plt.subplots(1, len(levels), figsize=(3.6 * len(levels) + 1, 3.8), sharey=True, squeeze=False)
            for axis, p in zip(axes[0], levels, strict=True):
                for rule in grid.rules:
                    axis.plot([], [], color=color[rule], label=label[rule], linewidth=1.3)  # in the legend, drawn or not
                    curves = [_curve(row) for row in of_task if (row.run.rule, row.run.error_probability) == (rule, p)]
                    if curves:
                        times = curves[0][0]
                        stacked = np.array([np.interp(times, *curve) for curve in curves])
                        axis.plot(times, stacked.mean(axis=0), color=color[rule], linewidth=1.3)
                        axis.fill_between(times, stacked.min(axis=0), stacked.max(axis=0), color=color[rule], alpha=0.15)
                axis.set(title=f"p = {p:g}", xlabel="time (s)")
            axes[0][0].set(ylabel=f"test {metric.label(goal)}")
            axes[0][0].legend(frameon=False, fontsize=7)
            made.append(save(figure, folder / f"{task}-{goal}.png", f"{task}: mean and range over the seeds"))

            figure, axes = plt.subplots(
                1, 1 + len(plan.targets), figsize=(3.6 * (1 + len(plan.targets)) + 1, 3.8), squeeze=False
            )
            for rule in grid.rules:
                mine = [[row for row in of_task if (row.run.rule, row.run.error_probability) == (rule, p)] for p in levels]
                axes[0][0].errorbar(
                    levels,
                    [np.mean([row.best for row in some]) if some else np.nan for some in mine],
                    [np.std([row.best for row in some]) if some else np.nan for some in mine],
                    color=color[rule], marker="o", markersize=3, capsize=2, label=label[rule],
                )  # fmt: skip
                for i, axis in enumerate(axes[0][1:]):
                    medians = [np.median([row.seconds_to[i] for row in some]) if some else np.nan for some in mine]
                    reached = np.where(np.isfinite(medians), medians, np.nan)
                    axis.plot(levels, reached, color=color[rule], marker="o", markersize=3)
            known = [line for line in published if line["task"] == task and line["method"] in color and goal == "accuracy"]
            for line in known:
                p, mark = float(line["error_probability"]), {"marker": "x", "color": color[line["method"]], "linestyle": ""}
                axes[0][0].plot(p, float(line["max_test_accuracy_mean"]) / 100, **mark)
                for target, axis in zip(plan.targets, axes[0][1:], strict=True):
                    seconds = _published_seconds(line, target)
                    axis.plot(p, seconds, **mark)
            axes[0][0].set(title=f"best {metric.label(goal)}", xlabel="error probability p")
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

            if first := next((row for row in of_task if row.run.rule == next(iter(grid.rules))), None):
                tables = record.read_record(first.run_dir)
                figure, (local, stale) = plt.subplots(1, 2, figsize=(11, 3.8))
                merged, num_clients = (
                    tables.updates[tables.updates["accepted"]],
                    len(np.asarray(tables.attributes["clients"])),
                )
                draw_clients(merged, num_clients, None, local, stale)
                made.append(save(figure, folder / f"{task}-clients.png", f"{first.run.name}: K and gamma of each client"))
    return made


def _curve(row: StudyRow) -> tuple[np.ndarray, np.ndarray]:
    evaluations = record.read_record(row.run_dir).evaluations
    return evaluations["time_s"], evaluations[row.metrics.goal]


def read_authors(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV of published figures, as `plot_study` draws them.

    Raises:
        ValueError: it cannot be read, a column is missing, or a cell is no number; the message says in which line.
    """
    columns = ["task", "method", "error_probability", "max_test_accuracy_mean"]
    rows = read_csv(path, columns, "give the CSV of published figures as --authors")
    for number, row in rows:
        targets = [f"target_{i}" for i in range(1, 5) if row.get(f"target_{i}")]
        for column in (*columns[2:], *targets, *(f"median_s_to_{target}" for target in targets)):
            cell = row.get(column, "")
            if not (cell == "never" and column.startswith("median_s_to_")) and not _is_number(cell):
                raise ValueError(f"{path}: line {number}: {column} is {cell!r}, expected a number such as 0.5")
    return [row for _, row in rows]


def _is_number(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _published_seconds(line: dict[str, str], target: float) -> float:
    for i in range(1, 5):
        if line.get(f"target_{i}") and abs(float(line[f"target_{i}"]) / 100 - target) < 1e-9:
            text = line[f"median_s_to_target_{i}"]
            return float(text) if text != "never" else np.nan
    return np.nan


def pyplot() -> ModuleType:
    """Import matplotlib, without a display. Raises ValueError if it is not installed."""
    os.environ["MPLBACKEND"] = "agg"  # matplotlib refuses to load with one that it does not know, as a notebook's
    try:
        import matplotlib
    except ImportError:
        raise ValueError("plots need matplotlib: pip install 'asyncfeded[plots]'") from None
    matplotlib.use("agg")
    from matplotlib import pyplot

    return pyplot


def _check_free(path: Path) -> None:
    """Raise ValueError if there is a file that this program did not draw."""
    if path.is_file() and MAKER.encode() not in path.read_bytes():
        raise ValueError(f"{path} exists, and asyncfeded did not draw it; choose another --output, or move it away")


def save(figure: Any, path: Path, title: str) -> Path:  # noqa: ANN401 matplotlib's figure
    """Write a figure under its title and close it. Returns the path; raises ValueError if it cannot be written."""
    figure.suptitle(title, fontsize=11, parse_math=False)
    kind = path.suffix[1:] or "png"  # without one it would be written as path.png
    field = {"png": "Software", "pdf": "Creator", "svg": "Creator"}.get(kind.lower())
    try:
        figure.savefig(path, dpi=130, format=kind, metadata={field: MAKER} if field else None)
    except OSError as error:
        raise ValueError(f"cannot write {path}: {error.strerror}") from None
    finally:
        pyplot().close(figure)
    return path
