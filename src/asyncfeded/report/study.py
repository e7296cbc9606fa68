"""A study in a report: its tables, the metrics over time with their range over the seeds, and what differs significantly."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from asyncfeded.files.plain import read_csv
from asyncfeded.metric import DEFAULT, Metric
from asyncfeded.report import html, significance
from asyncfeded.report.figure import Band, Chart, Figure, Line
from asyncfeded.report.html import Html, tag
from asyncfeded.report.page import Part
from asyncfeded.report.words import count, listed, number
from asyncfeded.store import record
from asyncfeded.studies.statistics import holm

COLUMNS = ("task", "rule", "error_probability", "seed", "config_sha256", "outcome", "metric", "best", "final", "updates")
ADVICE = "asyncfeded study writes it into its folder (--output)"


class Run(NamedTuple):
    """A line of table.csv; the numbers of a run that is not done are NaN."""

    task: str
    rule: str
    """With its setting, where the study has several."""
    p: float
    """Error probability."""
    seed: str
    name: str
    """Of its folder."""
    done: bool
    metric: str
    best: float
    final: float
    updates: float
    seconds_to: dict[str, float]
    """Seconds to each target; infinite where it was not reached."""


def read(folder: Path) -> list[Run]:
    """The runs of a study. Raises ValueError if the folder has no table of one, or a cell is no number."""
    path = folder / "table.csv"
    runs, rows = [], read_csv(path, [name for name in COLUMNS if name != "outcome"], ADVICE)
    settings = len({row.get("setting") for _, row in rows})
    for line, row in rows:
        try:
            p, seconds_to = float(row["error_probability"]), {}
            for name in (name for name in row if name.startswith("target_") and row[name]):
                seconds_to[row[name]] = float(row[name.replace("target", "seconds_to_target", 1)] or math.inf)
            best, final, updates = (float(row[name] or math.nan) for name in ("best", "final", "updates"))
        except (KeyError, ValueError) as error:
            raise ValueError(f"{path}: line {line}: {error}; {ADVICE}") from None
        name = f"{row['task']}-{row['rule']}-p{p:g}-s{row['seed']}-{row['config_sha256'][:8]}"
        done = row.get("outcome", "done") == "done"
        rule = f"{row['rule']}, {row['setting']}" if settings > 1 else row["rule"]
        runs.append(Run(row["task"], rule, p, row["seed"], name, done, row["metric"], best, final, updates, seconds_to))
    if not runs:
        raise ValueError(f"{path}: holds no run; {ADVICE}")
    return runs


def part(folder: Path, key: str) -> Part:
    """The part of a page about a study."""
    runs, name = read(folder), folder.absolute().name
    done = sum(run.done for run in runs)
    rules, tasks = list(dict.fromkeys(run.rule for run in runs)), list(dict.fromkeys(run.task for run in runs))
    seeds = len({run.seed for run in runs})
    said = f"{count(len(rules), 'rule')} on {listed(tasks)} with {count(seeds, 'seed')}: {done} of {len(runs):,} runs done."
    inner = [
        body
        for i, task in enumerate(tasks)
        for body in _task(folder, f"{key}-{i}", rules, [r for r in runs if r.task == task])
    ]
    body = tag("section", tag("h2", f"Study {name}"), tag("p", said, class_="says"), *inner, id=key)
    return Part(key, f"Study {name}", body)


def _task(folder: Path, key: str, rules: Sequence[str], runs: Sequence[Run]) -> Iterator[Html]:
    """What is said of a task: curves, a table for each error probability, and the significance of its differences."""
    levels = sorted({run.p for run in runs})
    curves = {run.name: curve for run in runs if run.done and (curve := _curve(folder / "runs" / run.name))}
    goal = next((run.metric for run in runs if run.metric), "metric")
    metric = next((curve.metric for curve in curves.values()), _guess(goal, runs))
    yield tag("h3", runs[0].task, class_="task")
    yield _curves(key, goal, metric, rules, runs, curves).html()
    for p in levels:
        yield tag("h4", f"Error probability {p:g}")
        yield _table(goal, metric, rules, [run for run in runs if run.p == p])
    yield _significance(goal, metric, rules, runs)


def _guess(goal: str, runs: Sequence[Run]) -> Metric:
    """What a metric is, where no record tells: the best value of a run is no worse than its last."""
    falls = any(run.best < run.final for run in runs)
    return DEFAULT.get(goal, Metric("min" if falls else "max"))


class Curve(NamedTuple):
    """The goal of a run over time."""

    time_s: np.ndarray
    values: np.ndarray
    metric: Metric


def _curve(run_dir: Path) -> Curve | None:
    """None where the run's folder is not there any more, as in a study of which the tables are kept."""
    if not run_dir.exists():
        return None
    tables = record.read_record(run_dir)
    if not len(tables.evaluations):
        return None
    return Curve(tables.evaluations["time_s"], tables.evaluations[tables.metrics.goal], tables.metrics.of_goal)


def _curves(
    key: str, goal: str, metric: Metric, rules: Sequence[str], runs: Sequence[Run], curves: dict[str, Curve]
) -> Figure:
    panels, rows = [], []
    for p in sorted({run.p for run in runs}):
        lines, bands = [], []
        for i, rule in enumerate(rules):
            mine = [curves[run.name] for run in runs if (run.rule, run.p) == (rule, p) and run.name in curves]
            if not mine:
                continue
            times = mine[0].time_s
            stack = np.array([np.interp(times, one.time_s, one.values) for one in mine])
            low, mean, high = stack.min(axis=0), stack.mean(axis=0), stack.max(axis=0)
            lines.append(Line(rule, times, mean, i, "line" if i < 8 else "dashes"))
            if len(mine) > 1:
                bands.append(Band("", times, low, high, i, 0.12))
            ends = (low[-1], mean[-1], high[-1])
            rows.append([f"{p:g}", rule, str(len(mine)), f"{times[-1]:.1f}", *(metric.text(float(end)) for end in ends)])
        if lines:
            panels.append(Chart(f"Error probability {p:g}", "seconds", lines, bands, start=0.0))
    if len({run.p for run in runs if run.done}) > 1:
        panels.append(_over_levels(goal, metric, rules, runs))
    said = _leader(goal, metric, rules, runs)
    if not rows:
        said += " The records of its runs are not in the folder, so there is nothing to draw over time."
    head = ["error probability", "rule", "runs", "at s", "least", "mean", "greatest"]
    title = f"{goal} over time" if rows else f"{goal} of each rule"
    return Figure(f"{key}-curves", title, said, panels, head, rows, "Lines: means over the seeds; bands: their range.")


def _leader(goal: str, metric: Metric, rules: Sequence[str], runs: Sequence[Run]) -> str:
    """Which rule has the best mean at each error probability."""
    leaders: dict[str, list[str]] = {}
    for p in sorted({run.p for run in runs}):
        means = {rule: _mean([run.best for run in runs if (run.rule, run.p, run.done) == (rule, p, True)]) for rule in rules}
        known = {rule: value for rule, value in means.items() if math.isfinite(value)}
        if known:
            best = metric.best_of(np.array(list(known.values())))
            leader = listed([rule for rule, value in known.items() if value == best])
            leaders.setdefault(leader, []).append(f"{metric.text(best)} at {p:g}")
    if not leaders:
        return "No run is done."
    said = "; ".join(f"{leader} ({listed(where)})" for leader, where in leaders.items())
    return f"The best mean {goal} over the seeds, by error probability: {said}."


def _over_levels(goal: str, metric: Metric, rules: Sequence[str], runs: Sequence[Run]) -> Chart:
    """The best value of each rule over the error probability, with its range over the seeds."""
    lines, bands = [], []
    for i, rule in enumerate(rules):
        mine = [run for run in runs if run.rule == rule and run.done and math.isfinite(run.best)]
        levels = sorted({run.p for run in mine})
        values = [[run.best for run in mine if run.p == p] for p in levels]
        low, mean, high = (np.array([end(some) for some in values]) for end in (min, _mean, max))
        lines.append(Line(rule, np.array(levels), mean, i))
        bands.append(Band("", np.array(levels), low, high, i, 0.12))
    return Chart(f"Best {goal} over the error probability", "error probability", lines, bands)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else math.nan


def _table(goal: str, metric: Metric, rules: Sequence[str], runs: Sequence[Run]) -> Html:
    targets = list(dict.fromkeys(target for run in runs for target in run.seconds_to))
    rows = []
    for rule in rules:
        mine = [run for run in runs if run.rule == rule]
        done = [run for run in mine if run.done]
        cells = [_spread(metric, [getattr(run, name) for run in done]) for name in ("best", "final")]
        cells.append(f"{_mean([run.updates for run in done]):,.0f}" if done else "")
        for target in targets:
            reached = [run.seconds_to.get(target, math.inf) for run in done]
            median = float(np.median(reached)) if reached else math.nan
            cells.append("" if math.isnan(median) else "never" if math.isinf(median) else f"{median:,.0f}")
        rows.append([rule, f"{len(done)} of {len(mine)}", *cells])
    to = [f"s to {float(target):.4g}" for target in targets]
    return html.table(["rule", "runs", f"best {goal}", "final", "updates", *to], rows)


def _spread(metric: Metric, values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    if not values:
        return ""
    scale, digits = (100, 4) if metric.is_fraction else (1, 5)
    text = f"{scale * np.mean(values):.{digits}g}"
    return (
        text + (f" ± {round(scale * np.std(values, ddof=1), 9):.2g}" if len(values) > 1 else "") + " %" * metric.is_fraction
    )


class Compared(NamedTuple):
    """A rule against the first one, at one error probability."""

    p: float
    what: str
    rule: str
    difference: significance.Difference
    p_holm: float


def _compare(rules: Sequence[str], runs: Sequence[Run]) -> Iterator[Compared]:
    """Each rule against the first, at each error probability: best and final value, over the seeds that both have."""
    first, *others = rules
    values: dict[str, Callable[[Run], float]] = {"best": lambda run: run.best, "final": lambda run: run.final}
    for p in sorted({run.p for run in runs}):
        of = {rule: {run.seed: run for run in runs if (run.rule, run.p, run.done) == (rule, p, True)} for rule in rules}
        for what, value in values.items():
            made = []
            for rule in others:
                pairs = [(value(of[rule][seed]), value(of[first][seed])) for seed in of[first] if seed in of[rule]]
                made.append(significance.paired([ours for ours, _ in pairs], [theirs for _, theirs in pairs]))
            for rule, one, p_holm in zip(others, made, holm([one.p for one in made]), strict=True):
                yield Compared(p, what, rule, one, p_holm)


def _significance(goal: str, metric: Metric, rules: Sequence[str], runs: Sequence[Run]) -> Html:
    """Whether the differences between the rules are more than chance."""
    first, *others = rules
    compared = list(_compare(rules, runs))
    if not others:
        return Html()
    scale, rows, said = 100 if metric.is_fraction else 1, [], []
    for p, what, rule, one, p_holm in compared:
        interval = f"{scale * one.low:+.3g} to {scale * one.high:+.3g}" if math.isfinite(one.low) else ""
        difference = f"{scale * one.mean:+.3g}" if math.isfinite(one.mean) else ""
        ps = [number(x, 2) if math.isfinite(x) else "" for x in (one.p, p_holm)]
        rows.append([f"{p:g}", what, rule, str(one.pairs), difference, interval, *ps])
    for rule in others:
        mine = [one for one in compared if one.rule == rule]
        sure = [one.difference.mean > 0 for one in mine if one.p_holm < significance.LEVEL]
        better = sum(up == (metric.best == "max") for up in sure)
        words = [f"{word} in {many}" for word, many in (("better", better), ("worse", len(sure) - better)) if many]
        said.append(f"{rule} is {' and '.join(words) or 'not different'}" + f" of {len(mine)}" * bool(words))
    pairs = max(one.difference.pairs for one in compared)
    if pairs < 2:
        return tag("p", "Whether the differences are more than chance cannot be told from one seed.", class_="says")
    text = f"Significant differences from {first} in best or final value, over {count(pairs, 'shared seed')}: "
    text += f"{'; '.join(said)}." + " With so few seeds only large differences show." * (pairs < 6)
    head = ["error probability", "value", "rule", "pairs", "difference" + ", points" * metric.is_fraction]
    head += ["95 % interval", "p", "p, Holm"]
    note = f"Differences of {goal} from {first} on the same seed; paired t test, corrected after Holm over the rules."
    table = html.folded(f"Table: {count(len(rows), 'comparison')}", html.table(head, rows, words=3))
    return html.join(
        [tag("h4", "Is it more than chance?"), tag("p", text, class_="says"), table, tag("p", note, class_="note")]
    )
