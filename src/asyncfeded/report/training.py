"""Figures of what a run learned: its metrics, and gamma, eta, K and tau over time and as distributions."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from asyncfeded.metric import Metric
from asyncfeded.report.figure import Band, Chart, Figure, Line, bands_of, windows_note
from asyncfeded.report.seen import Seen
from asyncfeded.report.thinning import spread
from asyncfeded.report.words import count, number, percent, seconds

EACH = 8
"""Largest number of clients with a line each."""
UPDATES_EACH = 400
"""Largest mean number of updates of a client with a line of its own; of more the figures show how they spread."""
BINS = 40
EVEN = 9
"""Updates that a running median is taken of."""


class Quantity(NamedTuple):
    """A number of every update, as the figures call it."""

    name: str
    field: str
    meaning: str


QUANTITIES = (
    Quantity("gamma", "gamma", "way of the model over way of the client"),
    Quantity("eta", "eta", "the share of an update that was merged"),
    Quantity("K", "epochs", "local epochs or steps of the round"),
    Quantity("tau", "tau", "versions between download and merge"),
)


def metrics(seen: Seen) -> Figure:
    """The metrics over time and over updates, and those of the clients' own tests."""
    rows = seen.evaluations
    panels = []
    if len(rows):
        for name, metric in sorted(seen.metrics.by_name.items(), key=lambda pair: pair[0] != seen.metrics.goal):
            for label, x in ((seen.time_label, "time_s"), ("updates merged", "version")):
                panels.append(
                    _metric(
                        f"{metric.label(name)} over {'time' if x == 'time_s' else 'updates'}", label, metric, name, rows, x
                    )
                )
    if len(seen.tests):
        panels.append(_own_tests(seen))
    shown = list(seen.metrics.by_name)
    return Figure(
        f"{seen.key}-metrics",
        "The global model on the test data",
        learned(seen),
        panels,
        ["seconds", "version", *shown],
        [[f"{row['time_s']:.2f}", f"{row['version']:,}", *(number(row[name], 5) for name in shown)] for row in rows],
        every=True,
    )


def _metric(title: str, label: str, metric: Metric, name: str, rows: np.ndarray, x: str) -> Chart:
    return Chart(
        title,
        label,
        [Line(name, rows[x], rows[name])],
        zero=metric.is_fraction or (metric.best == "min" and not (rows[name] < 0).any()),
        top=1.0 if metric.is_fraction else 0.0,
        start=0.0,
    )


def _own_tests(seen: Seen) -> Chart:
    rows, goal = seen.tests, seen.metrics.goal
    bands: list[Band] = []
    if len(seen.clients) <= EACH:
        each = [(client, rows[rows["client"] == client]) for client in np.unique(rows["client"])]
        lines = [Line(f"client {client}", own["time_s"], own[goal], i) for i, (client, own) in enumerate(each)]
    else:
        lines, bands = bands_of(spread(rows["time_s"], rows[goal]), "tests")
    title = f"{seen.goal.label(goal)} of the model that a client received, on its own data"
    return Chart(title, seen.time_label, lines, bands, zero=seen.goal.is_fraction, start=0.0)


def learned(seen: Seen) -> str:
    """What the evaluations say, in a sentence."""
    rows, name, metric = seen.evaluations, seen.metrics.goal, seen.goal
    if not len(rows):
        return "The model was not evaluated" + (" yet." if seen.goes_on else ".")
    values, finite = rows[name], np.isfinite(rows[name])
    if not finite.any():
        return f"None of {count(len(rows), 'evaluation')} has a {name} that is a finite number."
    best = metric.best_of(values[finite])
    at = rows[finite][values[finite] == best][0]
    first, last = values[finite][0], values[finite][-1]
    said = f"Test {name} went from {metric.text(first)} to {metric.text(last)} in {count(len(rows), 'evaluation')}"
    if len(rows) == 1:
        said = f"The only evaluation has {name} {metric.text(first)}"
    elif best == last:
        said += "; the last one is the best"
    else:
        said += f"; the best, {metric.text(best)}, came after {seconds(at['time_s'])} and {count(at['version'], 'update')}"
    lost = len(rows) - int(finite.sum())
    return said + (f"; {count(lost, 'value')} of it {'is' if lost == 1 else 'are'} not finite" if lost else "") + "."


def staleness(seen: Seen) -> Figure:
    """gamma, eta, K and tau of the merged updates over time."""
    merged = seen.merged
    each = len(seen.clients) <= EACH and len(merged) <= UPDATES_EACH * len(seen.clients)
    panels = []
    for name, field, meaning in QUANTITIES if len(merged) else ():
        bands: list[Band] = []
        log, whole = _is_wide(merged[field]), merged[field].dtype.kind == "i"
        if each:
            lines = []
            for i, client in enumerate(np.unique(merged["client"]).tolist()):
                own = merged[merged["client"] == client]
                lines += _of_client(f"client {client}", own["time_s"], own[field], i, field == "epochs")
        else:
            lines, bands = bands_of(spread(merged["time_s"], merged[field]), "updates")
        panels.append(
            Chart(f"{name}, {meaning}", seen.time_label, lines, bands, log_y=log, zero=not log, start=0.0, whole="y" * whole)
        )
    note = windows_note(panels)
    if each and panels:
        note = f"Lines are running medians of {EVEN} updates, points the updates."
    return Figure(
        f"{seen.key}-staleness",
        "Staleness and the rule's answer over time",
        _stale(seen),
        panels,
        ["", "least", "5 %", "lower quartile", "median", "upper quartile", "95 %", "greatest", "not finite"],
        list(_quantiles(merged)),
        note,
    )


def _of_client(label: str, times: np.ndarray, values: np.ndarray, color: int, steps: bool) -> list[Line]:
    """K of a client as steps; another quantity as points with their running median, or as a line where it has few."""
    if steps or len(values) <= EVEN:
        return [Line(label, times, values, color, "step" if steps else "line")]
    windows = sliding_window_view(np.pad(values, EVEN // 2, mode="edge"), EVEN)
    return [Line(label, times, values, color, "haze"), Line(label, times, np.median(windows, axis=1), color)]


def _stale(seen: Seen) -> str:
    merged = seen.merged
    if not len(merged):
        return "No update was merged" + (" yet." if seen.goes_on else ".")
    gamma, epochs = merged["gamma"][np.isfinite(merged["gamma"])], merged["epochs"]
    low, middle, high = np.percentile(gamma, [25, 50, 75]) if len(gamma) else [np.nan] * 3
    said = (
        f"Half of the updates had a gamma between {number(low, 3)} and {number(high, 3)}, the median {number(middle, 3)}. "
    )
    first, last = np.array_split(epochs, 2) if len(epochs) > 1 else (epochs, epochs)
    said += (
        f"K ran from {epochs.min()} to {epochs.max()}, with a mean of {number(first.mean(), 3)} in the first half of the "
    )
    said += f"updates and {number(last.mean(), 3)} in the second. "
    tau = merged["tau"]
    return said + f"tau was {number(np.median(tau))} in the median and {number(tau.max())} at most."


def _quantiles(merged: np.ndarray) -> Iterator[list[str]]:
    for name, field, _ in QUANTITIES if len(merged) else ():
        values = merged[field]
        finite = values[np.isfinite(values)]
        marks = np.percentile(finite, [0, 5, 25, 50, 75, 95, 100]) if len(finite) else [np.nan] * 7
        yield [name, *(number(mark) for mark in marks), f"{len(values) - len(finite):,}"]


def distributions(seen: Seen) -> Figure:
    """gamma, eta, K and tau of the merged updates as distributions."""
    panels, rows = [], []
    for name, field, _ in QUANTITIES if len(seen.merged) else ():
        values = seen.merged[field]
        log, whole = _is_wide(values), values.dtype.kind == "i"
        edges, counts = histogram(values, log)
        if len(edges):
            y = np.append(counts, counts[-1])
            panels.append(
                Chart(
                    f"Updates by {name}",
                    name,
                    [Line("updates", edges, y, 0, "area")],
                    log_x=log,
                    zero=True,
                    whole="xy" if whole else "y",
                )
            )
            bins = zip(edges[:-1], edges[1:], counts, strict=True)
            rows += [[name, number(low), number(high), f"{many:,}"] for low, high, many in bins if many]
    return Figure(
        f"{seen.key}-distributions",
        "Distributions over the updates",
        _tails(seen),
        panels,
        ["", "from", "to", "updates"],
        rows,
    )


def _tails(seen: Seen) -> str:
    merged = seen.merged
    gamma = merged["gamma"][np.isfinite(merged["gamma"])]
    if not len(gamma):
        return "There is no distribution to show."
    mean, tail = np.nanmean(merged["eta"]), np.percentile(gamma, 95)
    fresh = float((merged["tau"] == 0).mean())
    return (
        f"One update in twenty had a gamma of {number(tail, 3)} or more, and the greatest was {number(gamma.max(), 3)}. "
        f"{percent(fresh)} of the updates were fresh (tau 0). The mean eta was {number(mean, 3)}."
    )


def histogram(values: np.ndarray, log: bool) -> tuple[np.ndarray, np.ndarray]:
    """Edges (bins + 1,) and counts (bins,) of the finite values; of whole numbers a bin for each, if they are few."""
    values = values[np.isfinite(values)]
    if log:
        values = values[values > 0]
    if not len(values):
        return np.zeros(0), np.zeros(0, np.int64)
    low, high = values.min(), values.max()
    if values.dtype.kind in "iu" and not log:
        width = max(1, -(-(int(high) - int(low) + 1) // BINS))
        edges = np.arange(low, high + width + 1, width) - 0.5
    elif log:
        edges = np.geomspace(low, high, BINS + 1)
        edges[0], edges[-1] = low, high
    else:
        edges = np.linspace(low, high if high > low else low + max(abs(low), 1.0) / BINS, BINS + 1)
    counts, _ = np.histogram(values, edges)
    return edges, counts


def _is_wide(values: np.ndarray) -> bool:
    """Whether values spread so far that a logarithmic axis shows them better."""
    some = values[np.isfinite(values) & (values > 0)]
    return bool(len(some) > 2 * (values <= 0).sum() and some.max() > 50 * np.median(some) and some.min() < some.max())
