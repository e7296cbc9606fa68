"""The tables of a study, made from its rows: what each rule reaches, what is more than chance, ranks, and the search."""

import csv
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from asyncfeded.metric import Metric
from asyncfeded.studies import jobs, rows, statistics
from asyncfeded.studies.perform import Done
from asyncfeded.studies.rows import FAILED, Row
from asyncfeded.studies.search import Search
from asyncfeded.studies.statistics import Interval, interval
from asyncfeded.studies.study import Setting, StudyGrid, StudyRun


class Cell(NamedTuple):
    """The runs of a setting on one task at one error probability."""

    task: str
    p: float
    by_rule: dict[str, list[Row]]
    """By rule, those that have ended, in the order of seeds; a failed one has the worst values of the cell."""
    failed: dict[str, int]
    planned: int
    """Runs of each rule."""

    @property
    def known(self) -> list[Row]:
        """All that have ended."""
        return [row for some in self.by_rule.values() for row in some]


def cells(grid: StudyGrid, done: Done, setting: str) -> Iterator[Cell]:
    """The cells of a setting that have a run."""
    by_place: dict[tuple[str, float], list[StudyRun]] = {}
    for run in done.runs[setting]:
        by_place.setdefault((run.task, run.error_probability), []).append(run)
    order = list(grid.tasks)
    for (task, p), runs in sorted(by_place.items(), key=lambda one: (order.index(one[0][0]), one[0][1])):
        ended = [done.rows[run.name] for run in runs if run.name in done.rows]
        filled = rows.worst_for_failures(ended)
        by_rule = {rule: [row for row in filled if row.rule == rule] for rule in grid.rules}
        failed = {rule: sum(row.outcome == FAILED for row in ended if row.rule == rule) for rule in grid.rules}
        if filled:
            yield Cell(task, p, by_rule, failed, len(grid.seeds))


def to_markdown(grid: StudyGrid, done: Done) -> str:
    """All tables of a study."""
    lines = [grid.caption.strip(), ""] if grid.caption else []
    lines += _made_by(done)
    made = {setting: list(cells(grid, done, setting)) for setting in grid.settings}
    lines += _summary(grid, made)
    for setting, mine in made.items():
        if len(grid.settings) > 1:
            lines += [f"## {setting}", ""]
        for cell in mine:
            lines += _results(grid, cell)
        if len(grid.rules) > 1:
            for task in grid.tasks:
                lines += _differences(grid, [cell for cell in mine if cell.task == task])
            lines += _ranks(grid, mine)
        if setting == "tuned":
            lines += _search(grid, done.searches)
    return "\n".join(lines)


def _made_by(done: Done) -> list[str]:
    """Which states of the program the runs of all settings are of."""
    known = [done.rows[run.name] for runs in done.runs.values() for run in runs if run.name in done.rows]
    counts = Counter(row.program for row in known).most_common()
    told = [f"{f'asyncfeded {program}' if program else 'a state not known'} ({count})" for program, count in counts]
    return [f"Runs by the program that made them: {', '.join(told)}.", ""] if told else []


def _summary(grid: StudyGrid, made: dict[Setting, list[Cell]]) -> Iterator[str]:
    """All tasks and settings in one table for each measure, if there is more than one of them."""
    by_place = {setting: {(cell.task, cell.p): cell for cell in mine} for setting, mine in made.items()}
    places = list(dict.fromkeys(place for mine in by_place.values() for place in mine))
    if len(places) < 2:
        return
    several = {task for task in grid.tasks if len([one for one, _ in places if one == task]) > 1}
    yield from ("## All tasks", "")
    known = [setting for setting, mine in made.items() if mine]
    said = f"Medians over the seeds, {' / '.join(known)}; " if len(known) > 1 else "Medians over the seeds; "
    yield from (said + "the best of each column is bold. The tables below have the intervals.", "")
    for measure, title in MEASURES.items():
        heads = [f"{task}, p = {p:g}" if task in several else task for task, p in places]
        yield from (f"### {title[0].upper()}{title[1:]}", "")
        yield from ("| rule | " + " | ".join(heads) + " |", "|---|" + "---:|" * len(heads))
        columns = []
        for place in places:
            parts = [_medians(grid, by_place[setting].get(place), measure) for setting in known]
            columns.append([" / ".join(one) for one in zip(*parts, strict=True)])
        for rule, *texts in zip(grid.rules, *columns, strict=True):
            yield f"| {rule} | " + " | ".join(texts) + " |"
        yield ""


def _medians(grid: StudyGrid, cell: Cell | None, measure: str) -> list[str]:
    """The median of each rule, as text; the best one is bold, one that is missing is a dash."""
    if cell is None:
        return ["-"] * len(grid.rules)
    costs = [cost(grid, cell, mine, measure) if mine else math.inf for mine in cell.by_rule.values()]
    metric, best = cell.known[0].metric, min(costs)
    texts = []
    for mine, one in zip(cell.by_rule.values(), costs, strict=True):
        if measure == "time":
            text = "never" if math.isinf(one) else f"{one:.3g}"
        else:
            value = -one if metric.best == "max" else one
            text = f"{100 * value:.1f}" if metric.is_fraction else f"{value:.4g}"
        texts.append("-" if not mine else f"**{text}**" if one == best < math.inf else text)
    return texts


def _results(grid: StudyGrid, cell: Cell) -> Iterator[str]:
    """A line for each rule: medians over the seeds with their intervals."""
    targets, some = grid.tasks[cell.task].targets, cell.known[0]
    unit = " (%)" if some.metric.is_fraction else f" ({some.metric.unit})" if some.metric.unit else ""
    yield from (f"### {cell.task}, error probability {cell.p:g}", "", caption(cell), "")
    head = ["rule", "runs", f"final {some.goal}{unit}", "best", "mean over the run", "updates"]
    head += [text for target in targets for text in (f"s to {target:.4g}", "x")]
    yield from ("| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1))
    first = next(iter(grid.rules))
    reference = [interval([row.seconds_to(target) for row in cell.by_rule[first]]).median for target in targets]
    for rule, mine in cell.by_rule.items():
        line = [rule, f"{len(mine)} of {cell.planned}" + f", {cell.failed[rule]} failed" * bool(cell.failed[rule])]
        if mine:
            line += [
                _told(interval([getattr(row, name) for row in mine]), some.metric) for name in ("final", "best", "mean")
            ]
            line.append(f"{np.nanmedian(updates):.0f}" if np.isfinite(updates := [r.updates for r in mine]).any() else "")
            for target, median in zip(targets, reference, strict=True):
                found = interval([row.seconds_to(target) for row in mine])
                known = math.isfinite(found.median) and math.isfinite(median) and median > 0
                line += [_seconds(found), f"{found.median / median:.1f}" if known else ""]
        yield "| " + " | ".join(line + [""] * (len(head) - len(line))) + " |"
    yield ""


def caption(cell: Cell) -> str:
    """What a reader of a cell must know: whose medians, how fine the test set is, and what x and a failure are."""
    seeds = max(len(mine) for mine in cell.by_rule.values())
    said = f"Medians of {seeds} seeds [95 % bootstrap interval]" if seeds > 1 else "One seed"
    said += f"; x: the time over that of {next(iter(cell.by_rule))}."
    metric, samples = cell.known[0].metric, cell.known[0].test_samples
    if metric.is_fraction and math.isfinite(samples):
        share = float(np.median([row.final for row in cell.known if row.outcome != FAILED]))
        points = 100 * statistics.resolution(min(max(share, 0.0), 1.0), samples)
        said += f" {samples:,.0f} test samples: by chance two models as good as these ({100 * share:.1f} %) differ by up to "
        said += f"{points:.2f} points (95 %)."
    if any(cell.failed.values()):
        said += " A run that failed (diverged) counts as the worst value of any run here."
    return said


def _told(found: Interval, metric: Metric) -> str:
    scale, form = (100, ".2f") if metric.is_fraction else (1, ".5g")
    median, low, high = (format(scale * value, form) for value in found)
    return median if low == high else f"{median} [{low}, {high}]"


def _seconds(found: Interval) -> str:
    median, low, high = ("never" if math.isinf(value) else f"{value:.3g}" for value in found)
    return median if low == high else f"{median} [{low}, {high}]"


class Compared(NamedTuple):
    """A rule against the first, over pairs of the same seed and error probability."""

    rule: str
    pairs: int
    difference: Interval
    """Of the final value."""
    p: float
    """Of a permutation test, corrected after Holm."""
    sooner: int
    """Pairs in which it was sooner at the last target."""
    later: int
    p_time: float
    """Of a sign test of these, corrected."""


def compare(grid: StudyGrid, made: Sequence[Cell]) -> list[Compared]:
    """Each other rule against the first, on one task."""
    first, *others = grid.rules
    found = []
    for rule in others:
        pairs = [
            (mine, theirs)
            for cell in made
            for theirs in cell.by_rule[first]
            for mine in cell.by_rule[rule]
            if mine.seed == theirs.seed
        ]
        final = [mine.final - theirs.final for mine, theirs in pairs]
        times = [tuple(row.seconds_to(grid.tasks[row.task].targets[-1]) for row in pair) for pair in pairs]
        sooner, later = sum(a < b for a, b in times), sum(a > b for a, b in times)
        p = statistics.permutation_p(final)
        found.append(Compared(rule, len(pairs), interval(final), p, sooner, later, statistics.sign_p(sooner, later)))
    finals, of_time = (statistics.holm([getattr(one, name) for one in found]) for name in ("p", "p_time"))
    return [one._replace(p=p, p_time=t) for one, p, t in zip(found, finals, of_time, strict=True)]


def _differences(grid: StudyGrid, made: Sequence[Cell]) -> Iterator[str]:
    """What of the differences to the first rule is more than chance."""
    compared = compare(grid, made)
    pairs = max(one.pairs for one in compared)
    if not pairs:
        return
    first, task, metric = next(iter(grid.rules)), made[0].task, made[0].known[0].metric
    target = f"{grid.tasks[task].targets[-1]:.4g}"
    points = ", points" if metric.is_fraction else ""
    yield from (f"### {task}: differences to {first}", "")
    said = (
        f"Pairs of the same seed and error probability, {pairs} at most. Final value: permutation test of the mean; time to "
    )
    said += f"{target}: sign test; p corrected after Holm for {len(compared)} rules."
    least = min(1.0, statistics.least_p(pairs) * len(compared))
    said += f" With so many pairs the smallest p of that test is {least:.2g}."
    yield from (said, "")
    yield f"| rule | pairs | final{points} | p | sooner, later at {target} | p |"
    yield "|---|---:|---:|---:|---:|---:|"
    scale = 100 if metric.is_fraction else 1
    for one in compared:
        median, low, high = (f"{scale * value:+.3g}" if not math.isnan(value) else "" for value in one.difference)
        ps = ["" if math.isnan(p) else f"{p:.2g}" + "*" * (p < statistics.LEVEL) for p in (one.p, one.p_time)]
        change = f"{median} [{low}, {high}]" if one.pairs else ""
        yield f"| {one.rule} | {one.pairs} | {change} | {ps[0]} | {one.sooner}, {one.later} | {ps[1]} |"
    yield ""


MEASURES = {"final": "final value", "time": "time to the last target", "mean": "mean over the run"}
"""What rules are ranked by."""


def ranked(grid: StudyGrid, made: Sequence[Cell]) -> dict[str, statistics.Ranks]:
    """The ranks of the rules over the cells that all rules have runs in, by measure; empty if there is no such cell."""
    whole = [cell for cell in made if all(cell.by_rule.values())]
    if not whole:
        return {}

    tables = {
        name: [[cost(grid, cell, mine, name) for mine in cell.by_rule.values()] for cell in whole] for name in MEASURES
    }
    return {name: statistics.ranks(np.array(costs)) for name, costs in tables.items()}


def cost(grid: StudyGrid, cell: Cell, mine: Sequence[Row], measure: str) -> float:
    """The median of a measure (`MEASURES`) over runs of a cell, with the other sign where more is better."""
    if measure == "time":
        return float(np.median([row.seconds_to(grid.tasks[cell.task].targets[-1]) for row in mine]))
    median = float(np.median([getattr(row, measure) for row in mine]))
    return -median if cell.known[0].metric.best == "max" else median


def _ranks(grid: StudyGrid, made: Sequence[Cell]) -> Iterator[str]:
    """Mean ranks over tasks and error probabilities, and how far apart they must be."""
    found = ranked(grid, made)
    if not found:
        return
    one = next(iter(found.values()))
    yield from ("### Ranks", "")
    said = f"Mean ranks over {one.blocks} pairs of task and error probability (1 is best)."
    if math.isfinite(one.difference):
        said += f" Two ranks differ by more than chance if they are {one.difference:.2f} apart (Nemenyi, 5 %)."
    said += "".join(f" Friedman, {MEASURES[name]}: p = {r.p:.2g}." for name, r in found.items() if math.isfinite(r.p))
    yield from (said, "", "| rule | " + " | ".join(MEASURES.values()) + " |", "|---|" + "---:|" * len(MEASURES))
    for i in np.argsort(sum(r.mean for r in found.values()), kind="stable"):
        yield f"| {list(grid.rules)[i]} | " + " | ".join(f"{r.mean[i]:.2f}" for r in found.values()) + " |"
    yield ""


def _search(grid: StudyGrid, searches: Sequence[Search]) -> Iterator[str]:
    """What was tried for each rule, a line for each search that has ended, and whether its best lies at an end."""
    tuning = grid.tuning
    more = -(-tuning.trials // tuning.halving)
    yield from ("### The search", "")
    yield f"{tuning.trials} random trials for each rule and task, successive halving by {tuning.halving}, seed"
    yield f"{tuning.seed}, p = {tuning.error_probability:g}. Where the best lies in the outermost tenth of a range, it goes"
    yield f"on beyond that end, with {more} more trials, up to {tuning.extensions} times."
    yield f"{sum(not found.missing for found in searches)} of {len(searches)} searches are done."
    yield from ("", "| task | rule | trials | best of what was tried |", "|---|---|---:|---|")
    for found in searches:
        if not found.missing:
            told = "; ".join(
                f"{key} = {found.values.get(key, 'none, all failed')} ({text}{', at an end' * (key in found.at_end)})"
                for key, text in found.ranges.items()
            )
            yield f"| {found.task} | {found.rule} | {found.trials} | {told} |"
    yield ""


def write_csv(grid: StudyGrid, done: Done, path: Path) -> None:
    """Write one line for each run of the results; one that has not ended has no figures, targets not reached are empty.

    `metric` is what `best`, `final`, `mean` and the targets are values of.
    """
    most = max(len(plan.targets) for plan in grid.tasks.values())
    head = ["task", "rule", "error_probability", "seed", "setting", "config_sha256", "outcome"]
    head += ["metric", "best", "final", "mean", "updates", *rows.QUARTILES, "wall_s", "workers_busy"]
    head += [f"{what}_{i + 1}" for i in range(most) for what in ("target", "seconds_to_target")]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        for setting, run in ((setting, run) for setting, some in done.runs.items() for run in some):
            row = done.rows.get(run.name)
            line: list[Any] = [run.task, run.rule, run.error_probability, run.seed, setting, jobs.digest(run.config)]
            line += [row.outcome if row else "not done"]
            if row and row.outcome != FAILED:
                line += [row.goal, row.best, row.final, row.mean, row.updates]
                line += [*row.gamma, *row.tau, row.wall_s, row.workers_busy]
                for target in grid.tasks[run.task].targets:
                    line += [target, seconds if math.isfinite(seconds := row.seconds_to(target)) else ""]
            written = [f"{x:.6g}" if isinstance(x, float) else x for x in line]
            writer.writerow(written + [""] * (len(head) - len(written)))
