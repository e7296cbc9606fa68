"""Figures of runs and studies, drawn only from the records of runs."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from asyncfeded.metric import Metric
from asyncfeded.plots.clients import COLORS, POINTS, draw_clients, draw_tests
from asyncfeded.store import record

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
