"""Figures of a run's server: waiting, queue, and what its time went into."""

from collections.abc import Iterator

import numpy as np

from asyncfeded.report import html
from asyncfeded.report.figure import Chart, Figure, bands_of, windows_note
from asyncfeded.report.html import Html, tag
from asyncfeded.report.seen import Seen
from asyncfeded.report.thinning import spread
from asyncfeded.report.words import count, number, percent, seconds

TIMES = (
    ("wait_s", "Waiting for a reply, s", "wait"),
    ("compute_s", "Training of a round, s", "training"),
    ("queue", "Other updates waiting when one is taken", "queue"),
    ("service_s", "The server's time for an update, s", "service"),
)


def waiting(seen: Seen) -> Figure:
    """How long clients wait and train, how many updates queue, and how long the server takes for one."""
    updates = seen.updates
    panels = []
    for field, title, _ in TIMES if len(updates) else ():
        lines, bands = bands_of(spread(updates["time_s"], updates[field]), "updates")
        panels.append(Chart(title, seen.time_label, lines, bands, zero=True, start=0.0, whole="y" * (field == "queue")))
    return Figure(
        f"{seen.key}-waiting",
        "Waiting and queue",
        _waits(seen),
        panels,
        ["", "least", "median", "mean", "95 %", "99 %", "greatest", "sum"],
        list(_numbers(updates)),
        f"Seconds of the wall clock. {windows_note(panels)}" if panels else "",
    )


def _numbers(updates: np.ndarray) -> Iterator[list[str]]:
    for field, title, _ in TIMES if len(updates) else ():
        values = updates[field][np.isfinite(updates[field])]
        if len(values):
            least, median, most = np.percentile(values, [0, 50, 100])
            ends = [number(value, 3) for value in (least, median, values.mean(), *np.percentile(values, [95, 99]), most)]
            yield [title, *ends, number(values.sum(), 4)]


def _waits(seen: Seen) -> str:
    updates = seen.updates
    if not len(updates):
        return "No update has arrived, so nobody has waited for a reply."
    wait, compute, queue = (np.nan_to_num(updates[name]) for name in ("wait_s", "compute_s", "queue"))
    part = wait.sum() / max(wait.sum() + compute.sum(), 1e-300)
    return (
        f"A worker waited {seconds(np.median(wait))} for a reply in the median and {seconds(wait.max())} at most: "
        f"{percent(part)} of the workers' time. When the server took an update, {number(queue.mean(), 2)} others were "
        f"waiting on average, and {number(queue.max())} at most."
    )


def time_by_kind(seen: Seen) -> Html:
    """The server's time by kind, as a bar of parts with a sentence and a table."""
    kinds, sentence = _kinds(seen)
    bar = [
        tag("span", style=f"flex:{part:.5f} 1 0;background:var(--c{color})", title=f"{name}: {percent(part)}", class_="part")
        for name, part, color, _ in kinds
    ]
    legend = [
        tag("li", tag("i", style=f"background:var(--c{color})"), f"{name}: {percent(part)}")
        for name, part, color, _ in kinds
    ]
    parts = (tag("div", *bar, class_="bar", role="img", aria_label=sentence), tag("ul", *legend, class_="legend"))
    notes = tag("p", *(f"{name}: {meaning} " for name, _, _, meaning in kinds), _service(seen), class_="note")
    cells = [[name, percent(part), seconds(part * seen.wall_s)] for name, part, _, _ in kinds]
    behind = html.folded(f"Table: {count(len(cells), 'row')}", html.table(["kind", "part", "time"], cells))
    title, key = tag("h3", "The server's time by kind"), f"{seen.key}-server"
    return tag("figure", title, tag("p", sentence, class_="says"), *((*parts, notes, behind) if kinds else ()), id=key)


def _service(seen: Seen) -> str:
    """What the time from taking an update to the end of its reply went into, as a sentence; empty without updates."""
    whole, measuring, rule = (float(np.nansum(seen.updates[name])) for name in ("service_s", "measure_s", "merge_s"))
    if not whole:
        return ""
    reply = max(whole - measuring - rule, 0.0)
    return (
        f"Of the time from the taking of an update to the end of its reply, {percent(measuring / whole)} went into "
        f"measuring, {percent(rule / whole)} into the rule and {percent(reply / whole)} into the reply, "
        f"in which most rules merge."
    )


def _kinds(seen: Seen) -> tuple[list[tuple[str, float, int, str]], str]:
    """Name, share, colour and meaning of each kind, and the sentence."""
    busy, evaluating = seen.result.get("server_busy"), seen.result.get("server_evaluating")
    if isinstance(busy, int | float) and isinstance(evaluating, int | float):
        what = "processor time of receiving, measuring, merging, replying and recording."
        known = [("updates", float(busy), 1, what), ("evaluation", float(evaluating), 2, "tests of snapshots of the model.")]
        said = f"The server spent {percent(busy)} of its time on updates and {percent(evaluating)} on tests of the model"
    elif len(seen.updates) and seen.clock == "wall":
        busy, tests = (
            float(np.nansum(seen.updates["service_s"])),
            seen.events["seconds"][seen.events["kind"] == b"evaluated"],
        )
        busy, evaluating = (min(float(took) / max(seen.seconds, 1e-9), 1.0) for took in (busy, tests.sum()))
        known = [("updates", busy, 1, "from taking an update to the end of its reply.")]
        known.append(("evaluation", evaluating, 2, "tests of snapshots of the model, between updates."))
        said = (
            f"So far the server spent {percent(busy)} of its time on updates and {percent(evaluating)} on tests of the model"
        )
    else:
        return [], "What the server's time went into is known when the run has ended."
    idle = max(1.0 - sum(part for _, part, _, _ in known), 0.0)
    said += f"; the remaining {percent(idle)} it was free"
    return [*known, ("free", idle, 8, "waiting for updates, writing the record and checkpoints.")], said + "."
