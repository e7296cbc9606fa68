"""Several runs side by side: their figures, the difference of their configs, and their metrics on one chart."""

from collections.abc import Sequence

import numpy as np

from asyncfeded.report import html, origin
from asyncfeded.report.figure import Chart, Figure, Line
from asyncfeded.report.html import Html, tag
from asyncfeded.report.seen import Seen
from asyncfeded.report.words import count, listed, number, percent, seconds


def section(runs: Sequence[Seen]) -> Html:
    """The comparison of at least two runs."""
    lines = [list(row) for row in origin.differences([seen.config for seen in runs])]
    keys = [line[0] for line in lines]
    said = f"Their configs differ in {count(len(keys), 'key')}: {listed(keys)}." if keys else "Their configs are the same."
    names = [seen.name for seen in runs]
    return html.join(
        [
            html.table(["", *names], _figures(runs), words=1 + len(runs)),
            _metrics(runs).html(),
            tag("h3", "Difference of the configs"),
            tag("p", said, class_="says"),
            html.table(["key", *names], lines, words=1 + len(names)) if lines else "",
        ]
    )


def _figures(runs: Sequence[Seen]) -> list[list[str]]:
    """The numbers of each run, a line for each number."""
    goals = dict.fromkeys(seen.metrics.goal for seen in runs)
    rows = [["state", *(seen.state[0] for seen in runs)]]
    for goal in goals:
        rows.append([f"{goal}, last", *(_of_goal(seen, goal, best=False) for seen in runs)])
        rows.append([f"{goal}, best", *(_of_goal(seen, goal, best=True) for seen in runs)])
    rows.append(["updates", *(f"{len(seen.merged):,}" for seen in runs)])
    rows.append(["refused", *(f"{seen.refusals.sum():,}" for seen in runs)])
    rows.append(["time", *(seconds(seen.seconds) for seen in runs)])
    rows.append(["updates/s", *(number(len(seen.merged) / max(seen.seconds, 1e-9), 3) for seen in runs)])
    rows.append(["clients", *(f"{len(seen.clients):,}" for seen in runs)])
    for field in ("gamma", "tau"):
        rows.append([f"{field}, median", *(_median(seen.merged[field]) for seen in runs)])
    rows.append(["server busy", *(_share(seen, "server_busy") for seen in runs)])
    rows.append(["workers busy", *(_share(seen, "workers_busy") for seen in runs)])
    rows.append(["program", *(seen.origin for seen in runs)])
    return rows


def _of_goal(seen: Seen, goal: str, best: bool) -> str:
    metric, rows = seen.metrics.by_name.get(goal), seen.evaluations
    if metric is None or not len(rows):
        return ""
    return metric.text(metric.best_of(rows[goal]) if best else float(rows[goal][-1]))


def _median(values: np.ndarray) -> str:
    finite = values[np.isfinite(values)]
    return number(float(np.median(finite)), 3) if len(finite) else ""


def _share(seen: Seen, name: str) -> str:
    value = seen.result.get(name)
    return percent(value) if isinstance(value, int | float) else ""


def _metrics(runs: Sequence[Seen]) -> Figure:
    goals = dict.fromkeys(seen.metrics.goal for seen in runs if len(seen.evaluations))
    panels = []
    for goal in goals:
        mine = [(i, seen) for i, seen in enumerate(runs) if goal in seen.metrics.by_name and len(seen.evaluations)]
        metric = mine[0][1].metrics.by_name[goal]
        for x, label in (("time_s", "seconds of the run's clock"), ("version", "updates merged")):
            lines = [Line(seen.name, seen.evaluations[x], seen.evaluations[goal], i) for i, seen in mine]
            title = f"{metric.label(goal)} over {'time' if x == 'time_s' else 'updates'}"
            panels.append(
                Chart(title, label, lines, zero=metric.is_fraction, top=1.0 if metric.is_fraction else 0.0, start=0.0)
            )
    head, rows = ["run", "seconds", "version", "metric", "value"], []
    for seen in runs:
        goal, table = seen.metrics.goal, seen.evaluations
        rows += [[seen.name, f"{row['time_s']:.2f}", f"{row['version']:,}", goal, number(row[goal], 5)] for row in table]
    return Figure("compare-metrics", "The models on the test data", _best(runs), panels, head, rows, every=True)


def _best(runs: Sequence[Seen]) -> str:
    goal, known = runs[0].metrics.goal, [seen for seen in runs if len(seen.evaluations)]
    known = [seen for seen in known if seen.metrics.goal == goal and np.isfinite(seen.evaluations[goal]).any()]
    if not known:
        return f"None of the runs has an evaluation of {goal}."
    metric = known[0].goal
    values = [metric.best_of(seen.evaluations[goal]) for seen in known]
    best, worst = (pick(np.array(values)) for pick in (metric.best_of, metric.worst_of))
    first, last = known[values.index(best)], known[values.index(worst)]
    said = f"{first.name} has the best {goal}, {metric.text(best)}"
    return said + (f"; the best of {last.name} is the least good, {metric.text(worst)}." if worst != best else ".")
