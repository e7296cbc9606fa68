"""Figures of a scaling study, from its rows and predictions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from asyncfeded.plots import STYLE, pyplot, save
from asyncfeded.plots.clients import COLORS

if TYPE_CHECKING:
    from asyncfeded.studies.scaling.grid import ScalingGrid
    from asyncfeded.studies.scaling.prediction import Prediction
    from asyncfeded.studies.scaling.table import ScalingRow, Speedup

GREY = "#777777"


def plot_scaling(
    grid: ScalingGrid,
    rows: Sequence[ScalingRow],
    comparisons: Sequence[Speedup],
    predictions: Sequence[Prediction],
    folder: Path,
) -> list[Path]:
    """Draw speed-up and efficiency with the ideal line, busy and wait fractions, queue, and staleness over the clients.

    With predictions also throughput, waiting and staleness: measured, by mean value analysis and simulated, with N* marked.

    Args:
        grid: grid of the study.
        rows: its finished runs, at least one.
        comparisons: comparison of each row.
        predictions: predictions of its lines, or none.
        folder: folder for the PNGs.

    Returns:
        The PNGs.

    Raises:
        ValueError: matplotlib is not installed, or a picture cannot be written.
    """
    plt = pyplot()
    kinds = [kind for kind in grid.scaling if any(row.run.scaling == kind for row in rows)]
    repeats = f"median and range of {len(grid.seeds)} runs" if len(grid.seeds) > 1 else "one run each"
    pairs = list(zip(rows, comparisons, strict=True))
    alone = sum(np.isnan(one.speedup) for one in comparisons)
    missing = f"; {alone} of {len(rows)} runs have none of {grid.clients[0]} clients to compare with" * bool(alone)
    title = f"{_conditions(grid, rows)}\n{repeats}{missing}"
    with plt.rc_context(STYLE):
        figure, axes = _panels(plt, kinds, 2)
        for (speedup, efficiency), kind in zip(axes.T, kinds, strict=True):
            of_kind = [pair for pair in pairs if pair[0].run.scaling == kind]
            _ideal(grid, rows, speedup, efficiency)
            _lines(speedup, of_kind, lambda row, one: one.speedup)
            _lines(efficiency, of_kind, lambda row, one: one.efficiency)
            speedup.set_title(f"{kind} scaling")
            speedup.set_yscale("log", base=2)
            speedup.yaxis.set_major_formatter("{x:g}")
        _label(axes, ["speed-up in samples/s", "efficiency: speed-up / clients"])
        made = [save(figure, folder / "speedup.png", title)]

        figure, axes = _panels(plt, kinds, 3)
        for (busy, wait, queue), kind in zip(axes.T, kinds, strict=True):
            of_kind = [pair for pair in pairs if pair[0].run.scaling == kind]
            _lines(busy, of_kind, lambda row, one: row.server_busy)
            _lines(wait, of_kind, lambda row, one: row.client_wait)
            _lines(queue, of_kind, lambda row, one: row.queue[0])
            busy.set_title(f"{kind} scaling")
        _label(axes, ["part of time the server is busy", "part of time clients wait", "updates waiting when one is taken"])
        made.append(save(figure, folder / "server.png", title))

        figure, axes = _panels(plt, kinds, 2)
        for (gamma, tau), kind in zip(axes.T, kinds, strict=True):
            of_kind = [pair for pair in pairs if pair[0].run.scaling == kind]
            counts = np.array(sorted({row.run.clients for row, _ in of_kind}))
            tau.plot(counts, counts - 1, color=GREY, linestyle=":")
            tau.annotate(
                "every other client once", (counts[-1], counts[-1] - 1), (-130, -4), textcoords="offset points", color=GREY
            )
            _quartiles(gamma, [row for row, _ in of_kind], "gamma")
            _quartiles(tau, [row for row, _ in of_kind], "tau")
            gamma.set_title(f"{kind} scaling")
            gamma.set_yscale("symlog", linthresh=1)
        _label(axes, ["staleness gamma", "staleness tau, versions"])
        made.append(save(figure, folder / "staleness.png", "Staleness of the updates: median; bands: quartiles"))
        if predictions:
            made.append(_prediction(plt, predictions, rows, folder / "prediction.png"))
    return made


def _prediction(plt: Any, predictions: Sequence[Prediction], rows: Sequence[ScalingRow], path: Path) -> Path:  # noqa: ANN401
    figure, axes = plt.subplots(
        3, len(predictions), figsize=(3.9 * len(predictions) + 1, 9), sharex=True, sharey="row", squeeze=False
    )
    for column, one in enumerate(predictions):
        rate, wait, tau = axes[:, column]
        counts = [point.clients for point in one.points]
        ideal = one.points[0].clients / one.points[0].analysis.updates_per_s
        model = {"color": COLORS[0], "label": "mean value analysis"}
        virtual = {"color": COLORS[1], "linestyle": "--", "label": "simulation"}
        rate.plot(counts, [point.analysis.updates_per_s for point in one.points], **model)
        rate.plot(counts, [point.simulated.updates_per_s for point in one.points], **virtual)
        wait.plot(counts, [point.analysis.client_wait for point in one.points], **model)
        wait.plot(counts, [point.simulated.client_wait for point in one.points], **virtual)
        rate.axhline(1 / one.times.service_s, color=GREY, linewidth=0.8, linestyle=":")
        if not one.times.divided:
            rate.plot(counts, np.array(counts) / ideal, color=GREY, linewidth=0.8, linestyle=":")
        low, middle, high = np.array([point.simulated.tau for point in one.points]).T
        tau.fill_between(counts, low, high, color=COLORS[1], alpha=0.2)
        tau.plot(counts, middle, **virtual)
        for point in one.points:
            if point.measured:
                look = {"marker": "o", "color": "black", "markersize": 5, "linestyle": ""}
                look |= {"fillstyle": "none"} if point.fitted else {}
                rate.plot(point.clients, point.measured.updates_per_s, **look)
                wait.plot(point.clients, point.measured.client_wait, **look)
                some = [row.tau[1] for row in rows if (row.run.line, row.run.clients) == (one.line, point.clients)]
                tau.plot(point.clients, np.median(some), **look)
        for axis in (rate, wait, tau):
            axis.axvline(one.saturation, color=COLORS[5], linewidth=1)
            axis.set_xscale("log")
        rate.set_yscale("log")
        place = {"xycoords": ("data", "axes fraction"), "color": COLORS[5]}
        rate.annotate(f" N* = {one.saturation:,.0f}", (one.saturation, 0.02), **place)
        wait.set_ylim(0, 1)
        tau.set_yscale("symlog", linthresh=1)
        tau.set_xlabel("clients")
        scaling, label, rule, ranks = one.line
        rate.set_title(f"{scaling}, {label}, {rule}" + f", {ranks} ranks per node" * bool(ranks))
    axes[0][0].set_ylabel("updates/s")
    axes[1][0].set_ylabel("part of the time that clients wait")
    axes[2][0].set_ylabel("tau, versions (median; band: quartiles)")
    dots = {"color": "black", "marker": "o", "linestyle": ""}
    axes[0][0].plot([], [], **dots, fillstyle="none", label="measured, fitted on")
    axes[0][0].plot([], [], **dots, label="measured, not used")
    axes[0][0].legend(frameon=False, fontsize=8, loc="upper left")
    title = "Beyond the machine: one server on the times measured (dotted: what no server of these times exceeds)"
    return save(figure, path, title)


def _panels(plt: Any, kinds: Sequence[str], rows: int) -> Any:  # noqa: ANN401 matplotlib's
    size = (5 * len(kinds) + 1, 3.4 * rows)
    return plt.subplots(rows, len(kinds), figsize=size, sharex="col", sharey="row", squeeze=False)


def _lines(
    axis: Any,  # noqa: ANN401 matplotlib's
    pairs: Sequence[tuple[ScalingRow, Speedup]],
    value: Callable[[ScalingRow, Speedup], float],
) -> None:
    """Draw a value over the clients: a line with median and range over the seeds for each model, rule and ranks per node."""
    for number, line in enumerate(_names(pairs)):
        mine = [pair for pair in pairs if pair[0].run.line == line]
        counts = sorted({row.run.clients for row, _ in mine})
        values = [[value(row, one) for row, one in mine if row.run.clients == clients] for clients in counts]
        middle = np.array([np.median(some) for some in values])
        spread = [middle - [min(some) for some in values], [max(some) for some in values] - middle]
        axis.errorbar(counts, middle, np.abs(spread), capsize=2, label=_name(mine[0][0]), **_look(number))
    _clients_axis(axis, [row for row, _ in pairs])


def _quartiles(axis: Any, rows: Sequence[ScalingRow], name: str) -> None:  # noqa: ANN401 matplotlib's
    for number, line in enumerate(_names([(row, None) for row in rows])):
        mine = [row for row in rows if row.run.line == line]
        counts = sorted({row.run.clients for row in mine})
        values = [np.median([getattr(row, name) for row in mine if row.run.clients == n], axis=0) for n in counts]
        low, middle, high = np.array(values).T
        axis.fill_between(counts, low, high, color=_look(number)["color"], alpha=0.15)
        axis.plot(counts, middle, label=_name(mine[0]), **_look(number))
    _clients_axis(axis, rows)


def _ideal(grid: ScalingGrid, rows: Sequence[ScalingRow], speedup: Any, efficiency: Any) -> None:  # noqa: ANN401 matplotlib's
    """Draw the ideal line; it bends where clients that do not sleep share cores."""
    counts = np.geomspace(grid.clients[0], grid.clients[-1], 200)
    cores = _cores(grid, rows)
    best = np.minimum(counts, cores) / counts[0] if cores else counts / counts[0]
    label = f"ideal: {cores:.0f} cores" if cores and cores < counts[-1] else "ideal"
    speedup.plot(counts, best, color=GREY, linestyle=":", label=label)
    efficiency.plot(counts, best * counts[0] / counts, color=GREY, linestyle=":")


def _cores(grid: ScalingGrid, rows: Sequence[ScalingRow]) -> float:
    """Number of cores of the machine if ranks shared them and clients did not sleep; else 0."""
    crowded = [row.cores * row.run.ranks for row in rows if row.cores < 1]
    return float(np.median(crowded)) if crowded and not grid.round_s else 0.0


def _conditions(grid: ScalingGrid, rows: Sequence[ScalingRow]) -> str:
    if grid.round_s:
        return f"Clients are paced, {grid.round_s:g} s for a round of the fewest, and sleep most of it"
    if cores := _cores(grid, rows):
        return f"Clients and server share {cores:.0f} cores, which limit the speed-up"
    return "Every rank has cores of its own"


def _names(pairs: Sequence[tuple[ScalingRow, Any]]) -> list[tuple[str, str, str, int]]:
    return list(dict.fromkeys(row.run.line for row, _ in pairs))


def _name(row: ScalingRow) -> str:
    run = row.run
    ranks = f", {run.ranks_per_node} ranks per node" if run.ranks_per_node else ""
    return f"{run.model} ({row.params:,} parameters), {run.rule}{ranks}"


def _look(number: int) -> dict[str, Any]:
    """The style of a line; markers become smaller from line to line, so that lines that coincide are all visible."""
    return {"color": COLORS[number % len(COLORS)], "marker": "os^D"[number % 4], "markersize": max(3, 7 - 2 * number)}


def _label(axes: Any, labels: Sequence[str]) -> None:  # noqa: ANN401 matplotlib's
    """Finish the axes: what all columns have in common."""
    for row, label in zip(axes, labels, strict=True):
        row[0].set_ylabel(label)
        if row[0].get_yscale() != "log":
            row[0].set_ylim(0, 1.05 * row[0].get_ylim()[1])
    for axis in axes[-1]:
        axis.set_xlabel("clients")
    axes[0][0].legend(frameon=False, fontsize=8)


def _clients_axis(axis: Any, rows: Sequence[ScalingRow]) -> None:  # noqa: ANN401 matplotlib's
    counts = sorted({row.run.clients for row in rows})
    axis.set_xscale("log", base=2)
    axis.set_xticks(counts, [str(n) for n in counts], minor=False)
