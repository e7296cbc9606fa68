"""Figures of a study, drawn from its rows: curves, error probabilities, ranks; and the clients of one run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from asyncfeded.files.plain import read_csv
from asyncfeded.plots import STYLE, pyplot, save
from asyncfeded.plots.clients import COLORS, draw_clients
from asyncfeded.store import record
from asyncfeded.studies import tables
from asyncfeded.studies.perform import Done
from asyncfeded.studies.rows import DONE, Row
from asyncfeded.studies.statistics import Ranks, interval
from asyncfeded.studies.study import StudyGrid
from asyncfeded.studies.tables import Cell

GREY = {"color": "0.8", "linewidth": 0.8, "zorder": 1}
"""Of rules without a colour of their own."""


def plot_study(grid: StudyGrid, done: Done, folder: Path, authors: Path | None = None) -> list[Path]:
    """Draw the figures of a study.

    For each setting and task: the metric of the goal over time by rule (median and range over the seeds) at each error
    probability; its best value and the time to each target over the error probability, where there are several; K and gamma
    of each client in the first rule's first run, if its folder is there. For each setting: the mean ranks of the rules with
    the critical difference. Colours have the first rule and those with the best mean over the run of the task, as many as
    there are colours; the others are grey. The legend says how many of their runs are done where some are not.

    Args:
        grid: grid of the study.
        done: what there is of it.
        folder: folder for the PNGs; the runs are in `runs` there.
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
        for setting in grid.settings:
            cells = list(tables.cells(grid, done, setting))
            prefix, note = (f"{setting}-", f" ({setting})") if len(grid.settings) > 1 else ("", "")
            for task in grid.tasks:
                mine = [cell for cell in cells if cell.task == task]
                if not mine:
                    continue
                goal = mine[0].known[0].goal
                figure = _curves(grid, mine)
                apart = " " if len(mine) > 1 else "\n"  # one panel is narrow, and the legend lies beside the title
                title = f"{task}{note}:{apart}median and range over the seeds"
                made.append(save(figure, folder / f"{prefix}{task}-{goal}.png", title))
                if len(mine) > 1:
                    figure = _over_errors(grid, mine, published)
                    crosses = "; crosses: the authors' figures" if published else ""
                    title = f"{task}{note}: over the error probability{crosses}"
                    made.append(save(figure, folder / f"{prefix}{task}-errors.png", title))
            if len(grid.rules) > 1 and (ranked := tables.ranked(grid, cells)):
                title = f"Mean ranks{note} over {next(iter(ranked.values())).blocks} pairs of task and error probability"
                made.append(save(_ranks(list(grid.rules), ranked), folder / f"{prefix}ranks.png", title))
            made += _clients(grid, done, setting, folder, prefix)
    return made


def _look(grid: StudyGrid, cells: Sequence[Cell]) -> dict[str, dict[str, Any]]:
    """How each rule is drawn: the first one and the best in colours; then the others, in grey."""
    means = [{r: tables.cost(grid, cell, mine, "mean") for r, mine in cell.by_rule.items() if mine} for cell in cells]

    def place(rule: str) -> float:
        """Its mean place among the rules that have runs."""
        places = [sum(other < own[rule] for other in own.values()) for own in means if rule in own]
        return float(np.mean(places)) if places else math.inf

    first, *others = grid.rules
    best = {first, *sorted(others, key=place)[: len(COLORS) - 1]}
    coloured = [rule for rule in grid.rules if rule in best]
    look = {rule: {"color": color, "linewidth": 1.3} for rule, color in zip(coloured, COLORS, strict=False)}
    return look | {rule: GREY for rule in grid.rules if rule not in best}


def _labels(grid: StudyGrid, cells: Sequence[Cell], look: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Of the rules with a colour, and of the first grey one, which stands for all of them."""
    planned = sum(cell.planned for cell in cells)
    ended = {rule: sum(len(cell.by_rule[rule]) for cell in cells) for rule in grid.rules}
    grey = [rule for rule in look if look[rule] is GREY]
    labels = {rule: rule + f" ({ended[rule]} of {planned} runs)" * (ended[rule] < planned) for rule in grid.rules}
    return labels | {rule: f"{len(grey)} others" if rule == grey[0] else "_" for rule in grey}


def _curves(grid: StudyGrid, cells: Sequence[Cell]) -> Any:  # noqa: ANN401 matplotlib's figure
    look, some = _look(grid, cells), cells[0].known[0]
    labels = _labels(grid, cells, look)
    figure, axes = pyplot().subplots(1, len(cells), figsize=(3.6 * len(cells) + 2.6, 3.8), sharey=True, squeeze=False)
    for axis, cell in zip(axes[0], cells, strict=True):
        for rule, style in look.items():
            axis.plot([], [], **style, label=labels[rule])  # in the legend, drawn or not
            curves = [row.curve for row in cell.by_rule[rule] if row.outcome == DONE]
            if curves:
                times = curves[0][0]
                stacked = np.array([np.interp(times, *curve) for curve in curves])
                axis.plot(times, np.median(stacked, axis=0), **style)
                if style is not GREY:
                    low, high = stacked.min(axis=0), stacked.max(axis=0)
                    axis.fill_between(times, low, high, color=style["color"], alpha=0.1)
        axis.set(title=f"p = {cell.p:g}", xlabel="time (s)")
    axes[0][0].set(ylabel=f"test {some.metric.label(some.goal)}")
    done = [row for cell in cells for row in cell.known if row.outcome == DONE]
    if some.metric.best == "min" and all((row.curve[1] > 0).all() for row in done):
        axes[0][0].set_yscale("log")  # a run that diverged would hide the others
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=7)
    return figure


def _over_errors(grid: StudyGrid, cells: Sequence[Cell], published: Sequence[dict[str, str]]) -> Any:  # noqa: ANN401
    look, task, some = _look(grid, cells), cells[0].task, cells[0].known[0]
    labels, levels = _labels(grid, cells, look), [cell.p for cell in cells]
    known = [line for line in published if line["task"] == task and line["method"] in look and some.goal == "accuracy"]

    def reached(target: float) -> bool:
        ours = [_seconds(cell.by_rule[rule], target) for cell in cells for rule in grid.rules]
        return bool(np.isfinite([*ours, *(_published_seconds(line, target) for line in known)]).any())

    targets = [target for target in grid.tasks[task].targets if reached(target)]
    figure, axes = pyplot().subplots(1, 1 + len(targets), figsize=(3.4 * (1 + len(targets)) + 2.6, 3.8), squeeze=False)
    for rule, style in look.items():
        best = np.array([interval([row.best for row in cell.by_rule[rule]]) for cell in cells])
        around = np.abs(best[:, 1:] - best[:, :1]).T
        axes[0][0].errorbar(levels, best[:, 0], around, **style, marker="o", markersize=3, capsize=2, label=labels[rule])
        for target, axis in zip(targets, axes[0][1:], strict=True):
            medians = np.array([_seconds(cell.by_rule[rule], target) for cell in cells])
            axis.plot(levels, np.where(np.isfinite(medians), medians, np.nan), **style, marker="o", markersize=3)
    for line in known:
        p, mark = float(line["error_probability"]), {"marker": "x", "color": look[line["method"]]["color"], "linestyle": ""}
        axes[0][0].plot(p, float(line["max_test_accuracy_mean"]) / 100, **mark)
        for target, axis in zip(targets, axes[0][1:], strict=True):
            axis.plot(p, _published_seconds(line, target), **mark)
    axes[0][0].set(title=f"best {some.metric.label(some.goal)}", xlabel="error probability p")
    for target, axis in zip(targets, axes[0][1:], strict=True):
        axis.set(title=f"seconds to {target:.4g}", xlabel="error probability p")
        axis.set_ylim(bottom=0)
    for axis in axes[0]:
        axis.set_xlim(min(levels) - 0.05, max(levels) + 0.05)
    handles, names = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside right upper", frameon=False, fontsize=7)
    return figure


def _seconds(mine: Sequence[Row], target: float) -> float:
    return interval([row.seconds_to(target) for row in mine]).median


def _ranks(rules: Sequence[str], ranked: dict[str, Ranks]) -> Any:  # noqa: ANN401 matplotlib's figure
    """A panel for each measure: the rules on a line of ranks, and a bar over each group that cannot be told apart."""
    height = 1.1 + 0.16 * len(rules)
    figure, axes = pyplot().subplots(len(ranked), 1, figsize=(8, height * len(ranked)), squeeze=False)
    for axis, (name, one) in zip(axes[:, 0], ranked.items(), strict=True):
        order = np.argsort(one.mean, kind="stable")
        apart = f"; critical difference {one.difference:.2f}" if math.isfinite(one.difference) else ""
        axis.set_title(f"{tables.MEASURES[name]}{apart}", fontsize=9, pad=14)  # above the numbers
        half = -(-len(rules) // 2)
        bars = _groups(one.mean[order], one.difference)
        top = -0.5 * (len(bars) + 1)
        for place, i in enumerate(order):
            left = place < half
            depth = top - 1 - (place if left else len(rules) - 1 - place)
            edge = 0.6 if left else len(rules) + 0.4
            axis.plot([one.mean[i], one.mean[i], edge], [0, depth, depth], color="black", linewidth=0.7)
            text = f" {rules[i]} ({one.mean[i]:.1f}) "
            axis.text(edge, depth, text, ha="right" if left else "left", va="center", fontsize=7)
        for number, (low, high) in enumerate(bars):
            axis.plot([low - 0.05, high + 0.05], [-0.5 * (number + 1)] * 2, color=COLORS[0], linewidth=3)
        axis.plot([1, len(rules)], [0, 0], color="black", linewidth=1)
        for rank in range(1, len(rules) + 1):
            axis.plot([rank, rank], [0, 0.25], color="black", linewidth=0.7)
            axis.text(rank, 0.4, str(rank), ha="center", va="bottom", fontsize=7)
        axis.set_xlim(-0.25 * len(rules), 1.25 * len(rules) + 1)
        axis.axis("off")
    return figure


def _groups(means: np.ndarray, difference: float) -> list[tuple[float, float]]:
    """The largest groups of mean ranks, in order, that span less than the difference; those of one rule are left out."""
    groups: list[tuple[int, int]] = []
    for i, low in enumerate(means):
        last = int(np.flatnonzero(means - low <= difference)[-1]) if math.isfinite(difference) else i
        if last > i and (not groups or last > groups[-1][1]):
            groups.append((i, last))
    return [(float(means[i]), float(means[last])) for i, last in groups]


def _clients(grid: StudyGrid, done: Done, setting: str, folder: Path, prefix: str) -> list[Path]:
    """K and gamma of each client, in the first run of the first rule on each task that still has its folder."""
    made, first = [], next(iter(grid.rules))
    for task in grid.tasks:
        runs = [run for run in done.runs[setting] if (run.task, run.rule) == (task, first) and run.name in done.rows]
        run = next((run for run in runs if (folder / "runs" / run.name / "record.h5").exists()), None)
        if run:
            read = record.read_record(folder / "runs" / run.name)
            figure, (local, stale) = pyplot().subplots(1, 2, figsize=(11, 3.8))
            merged = read.updates[read.updates["accepted"]]
            draw_clients(merged, len(np.asarray(read.attributes["clients"])), None, local, stale)
            made.append(save(figure, folder / f"{prefix}{task}-clients.png", f"{run.name}: K and gamma of each client"))
    return made


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
