"""The page of a report: parts with their headings, style and script, everything in one file that needs no network."""

import time
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from typing import NamedTuple

from asyncfeded.report import clients, events, html, origin, server, training
from asyncfeded.report.html import Html, tag
from asyncfeded.report.seen import Seen
from asyncfeded.report.words import count, number, percent, seconds

MAKER = "asyncfeded report"
"""What a page says of its origin: a file without it is not replaced."""
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
"""The page may load nothing, from anywhere."""
KEYS = (
    "Drag over a figure to zoom, double-click to see all of it again. With the keyboard: Tab goes to a figure, the arrows "
    "move along it, plus and minus zoom, 0 shows all. Every figure has its numbers in the table below it."
)

SHARP = "Object.defineProperty(window, 'devicePixelRatio', {value: Math.max(2, devicePixelRatio)});"
"""uPlot draws as many dots as the screen has; paper has more."""


class Part(NamedTuple):
    """A part of the page, with an entry in its list of parts."""

    key: str
    name: str
    body: Html


def run_part(seen: Seen, alone: bool) -> list[Part]:
    """The parts of one run: several where it is the only one, else one that can be folded."""
    groups = [
        ("result", "Result", [training.metrics(seen).html()]),
        ("clients", "Clients", [clients.timeline(seen).html(), clients.shares(seen).html()]),
        ("rule", "Staleness", [training.staleness(seen).html(), training.distributions(seen).html()]),
        ("load", "Waiting", [server.waiting(seen).html(), server.time_by_kind(seen)]),
        ("events", "Events", [events.section(seen.events, len(seen.checkpoints))]),
        ("origin", "Origin", [origin.section(seen)]),
    ]
    headings = {
        "rule": "Staleness and the rule",
        "load": "Waiting and the server",
        "events": "What happened",
        "origin": "What was run",
    }
    if alone:
        return [
            Part(f"{seen.key}-{key}", name, _section(f"{seen.key}-{key}", headings.get(key, name), body))
            for key, name, body in groups
        ]
    inner = [part for key, name, body in groups for part in (tag("h2", headings.get(key, name)), *body)]
    head = tag("summary", tag("span", seen.name, class_="run"), tag("span", result(seen), class_="says"))
    return [Part(seen.key, seen.name, tag("section", tag("details", head, tiles(seen), *inner), id=seen.key, class_="one"))]


def _section(key: str, heading: str, body: Sequence[Html]) -> Html:
    return tag("section", tag("h2", heading), *body, id=key)


def result(seen: Seen) -> str:
    """The result of a run in one sentence."""
    name, metric, rows = seen.metrics.goal, seen.goal, seen.evaluations
    who = f"{seen.named('rule')} trained {seen.named('task')} with {count(len(seen.clients), 'client')}"
    how = f"in {seconds(seen.seconds)} and {count(len(seen.merged), 'merged update')}"
    if not len(rows):
        return f"{who} {how}; the model was not evaluated."
    return f"{who} to {name} {metric.text(float(rows[name][-1]))} {how}."


def tiles(seen: Seen) -> Html:
    """The most important numbers of a run."""
    rows, name = seen.evaluations, seen.metrics.goal
    busy = seen.result.get("server_busy")
    shown = []
    if len(rows):
        shown += [
            (f"{name}, last", seen.goal.text(float(rows[name][-1]))),
            (f"{name}, best", seen.goal.text(seen.goal.best_of(rows[name]))),
        ]
    shown += [("updates", f"{len(seen.merged):,}"), ("refused", f"{seen.refusals.sum():,}")]
    shown += [("time", seconds(seen.seconds)), ("updates/s", number(len(seen.merged) / max(seen.seconds, 1e-9), 3))]
    shown += [("clients", f"{len(seen.clients):,}")]
    shown += [("server busy", percent(busy))] if isinstance(busy, int | float) else []
    return tag("div", *(tag("div", tag("b", value), tag("span", label)) for label, value in shown), class_="tiles")


def head_of(runs: Sequence[Seen]) -> Html:
    """The head of the page for its runs."""
    if len(runs) != 1:
        return html.join([])
    seen = runs[0]
    word, sentence = seen.state
    badge = tag("span", word, class_=f"badge {word.replace(' ', '-')}")
    return html.join([tag("p", result(seen), class_="lead"), tag("p", badge, f" {sentence}", class_="state"), tiles(seen)])


def page(title: str, head: Html, parts: Sequence[Part]) -> str:
    """The whole page as text."""
    assets = files("asyncfeded.report") / "assets"
    read = {one.name: one.read_text(encoding="utf-8") for one in assets.iterdir()}
    style = [read["uPlot.min.css"], read["page.css"]]
    library = f"/*\n{read['LICENSE.uPlot']}*/\n{read['uPlot.iife.min.js']}"  # its licence goes where it goes
    links = [tag("a", part.name, href=f"#{part.key}") for part in parts]
    made = f"Made by asyncfeded {version('asyncfeded')} on {time.strftime('%Y-%m-%d at %H:%M')}. Charts: uPlot, MIT licence."
    body = [
        tag("header", tag("p", "asyncfeded report", class_="eyebrow"), tag("h1", title), head),
        tag("nav", *links, aria_label="Parts of this page") if len(links) > 1 else "",
        tag(
            "main",
            Html("<noscript>The figures need JavaScript, which is off here; the sentences and tables do not.</noscript>"),
            *(part.body for part in parts),
        ),
        tag("footer", tag("p", KEYS, class_="keys"), tag("p", made)),
    ]
    meta = [
        '<meta charset="utf-8">', '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="color-scheme" content="light dark">', f'<meta name="generator" content="{MAKER}">',
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">', '<link rel="icon" href="data:,">',
    ]  # fmt: skip
    top = html.join([Html("".join(meta)), tag("title", title), *(tag("style", Html(text)) for text in style)])
    scripts = [tag("script", Html(text.replace("</script", "<\\/script"))) for text in (SHARP, library, read["page.js"])]
    return f'<!DOCTYPE html>\n<html lang="en">{tag("head", top)}{tag("body", *body, *scripts)}</html>\n'
