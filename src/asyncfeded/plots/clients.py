"""The panels of a run's clients: each on a line of its own, or how they spread where they are many."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from asyncfeded.metric import Metrics

COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C6D31", "#000000")
"""The palette of Okabe and Ito, for colour-blind readers too; it repeats with other dashes if there are more clients."""
LINES = 2 * len(COLORS)
"""Largest number of clients with a line each; of more the figures show median, quartiles and range."""
POINTS = 150
"""Largest number of points in a line."""
SPAN = 20
"""Least number of updates that quartiles are taken of."""


def draw_clients(merged: np.ndarray, num_clients: int, counts: Any, local: Any, stale: Any) -> None:  # noqa: ANN401
    """Draw updates, K and gamma of a run's clients over time, on axes (of matplotlib) of their own.

    Args:
        merged: UPDATE (n,), the merged updates of the run.
        num_clients: number of clients, those without an update included.
        counts: for the updates; None: they are not drawn.
        local: for K.
        stale: for gamma.
    """
    if num_clients <= LINES:
        _draw_each(merged, counts, local, stale)
        return
    if counts is not None:
        _draw_updates(merged, num_clients, counts)
    _draw_together(merged, local, stale)


def draw_tests(tests: np.ndarray, num_clients: int, metrics: Metrics, axis: Any) -> None:  # noqa: ANN401
    """Draw the metric of the goal in the clients' own tests over time: each client, or how they spread where they are many.

    Args:
        tests: (n,), at least one, `client_evaluations` of a record.
        num_clients: number of clients of the run.
        metrics: of the run.
        axis: of matplotlib.
    """
    goal = metrics.goal
    if num_clients <= LINES:
        for i, client in enumerate(np.unique(tests["client"])):
            rows = tests[tests["client"] == client]
            axis.plot(rows["time_s"], rows[goal], label=f"client {client}", **_look(i))
        axis.legend(frameon=False, fontsize=8)
    else:
        latest, times, spreads = np.full(num_clients, np.nan), [], []
        for rows in _spans(tests):
            latest[rows["client"]] = rows[goal]  # of several tests of a client the last one stays
            if np.isfinite(latest).any():
                times.append(rows["time_s"][-1])
                spreads.append(_spread(latest[np.isfinite(latest)]))
        _draw_spread(axis, times, spreads, "clients")
    axis.set(title=f"{goal} of the model that a client received, on its own data", ylabel=metrics.of_goal.label(goal))


def _draw_each(merged: np.ndarray, counts: Any, local: Any, stale: Any) -> None:  # noqa: ANN401
    """Draw updates, K and gamma of each of at most LINES clients over time, on axes of their own; `counts` may be None."""
    clients = np.unique(merged["client"])
    for i, client in enumerate(clients):
        rows = merged[merged["client"] == client]
        line = _look(i) | {"label": f"client {client}"}
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
    if len(clients):
        if counts is None:
            stale.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
        else:
            counts.legend(frameon=False, fontsize=8)


def _look(i: int) -> dict[str, Any]:
    """The line of the i-th client."""
    dashes = ("-", "--", ":", "-.")[i // len(COLORS) % 4]
    return {"color": COLORS[i % len(COLORS)], "linestyle": dashes, "linewidth": 1.3}


def _draw_updates(merged: np.ndarray, num_clients: int, axis: Any) -> None:  # noqa: ANN401
    """Draw how the numbers of updates of many clients spread over time."""
    so_far, times, spreads = np.zeros(num_clients, np.int64), [], []
    for rows in _spans(merged):
        so_far += np.bincount(rows["client"], minlength=num_clients)
        times.append(rows["time_s"][-1])
        spreads.append(_spread(so_far))
    _draw_spread(axis, times, spreads, "clients")
    axis.set(title=f"Updates of each of {num_clients:,} clients", ylabel="updates")


def _draw_together(merged: np.ndarray, local: Any, stale: Any) -> None:  # noqa: ANN401
    """Draw how K and gamma of many clients' updates spread over time."""
    spans = _spans(merged)
    _draw_spread(local, [span["time_s"][-1] for span in spans], [_spread(span["epochs"]) for span in spans], "updates")
    known = [(span["time_s"][-1], gamma) for span in spans if len(gamma := _to_draw(span["gamma"]))]
    _draw_spread(stale, [time for time, _ in known], [_spread(gamma) for _, gamma in known], "updates")
    local.set(title="Local epochs of the clients' updates", ylabel="K", xlabel="time (s)")
    local.yaxis.get_major_locator().set_params(integer=True)
    stale.set(title="Staleness of the clients' updates", ylabel="gamma", xlabel="time (s)")
    if known:
        stale.set_yscale("log")


def _to_draw(gamma: np.ndarray) -> np.ndarray:
    """What a logarithmic axis can show."""
    shown: np.ndarray = gamma[np.isfinite(gamma) & (gamma > 0)]
    return shown


def _spans(merged: np.ndarray) -> list[np.ndarray]:
    """The updates in order, in at most POINTS parts of at least SPAN, if there are so many."""
    return np.array_split(merged, min(POINTS, -(-len(merged) // SPAN))) if len(merged) else []


def _spread(values: np.ndarray) -> np.ndarray:
    """Least, quartiles and most, float64 (5,)."""
    spread: np.ndarray = np.percentile(values, [0, 25, 50, 75, 100])
    return spread


def _draw_spread(axis: Any, times: Sequence[float], spreads: Sequence[np.ndarray], of: str) -> None:  # noqa: ANN401
    """Draw a median with its quartiles and range; each of `spreads` is what `_spread` returns, one for each time."""
    if not times:
        return
    least, first, median, third, most = np.transpose(spreads)
    axis.fill_between(times, least, most, color=COLORS[0], alpha=0.15, linewidth=0, label=f"all {of}")
    axis.fill_between(times, first, third, color=COLORS[0], alpha=0.35, linewidth=0, label="the middle half")
    axis.plot(times, median, color=COLORS[0], linewidth=1.3, label="median")
    axis.legend(frameon=False, fontsize=8)


def _grouped(values: np.ndarray, reduce: Callable[[np.ndarray], np.floating[Any]]) -> np.ndarray:
    """The values unchanged, or at most POINTS groups of neighbours, each reduced to one number."""
    size = -(-len(values) // POINTS)
    return np.array([reduce(values[i : i + size]) for i in range(0, len(values), size)]) if size > 1 else values


def _smooth(values: np.ndarray, width: int = 9) -> np.ndarray:
    """Running median, shorter at the ends."""
    half = width // 2
    return np.array([np.median(values[max(0, i - half) : i + half + 1]) for i in range(len(values))])
