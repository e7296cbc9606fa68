"""A figure of a report: what it says in a sentence, its panels as data for the page's script, and the table behind it."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from asyncfeded.report import html
from asyncfeded.report.html import Html, tag
from asyncfeded.report.thinning import POINTS, Spread, keep
from asyncfeded.report.words import count, rounded

ROWS = 200
"""Largest number of rows in the table behind a line; of more, every n-th is shown."""


Look: TypeAlias = Literal["line", "dashes", "step", "area", "dots", "open dots", "haze"]
"""step: a value holds until the next x; area: so too, filled down to 0; haze: faint points that no legend names."""


@dataclass(frozen=True)
class Line:
    """A line, or points, of a panel. Points with a time that is not finite are left out, values that are not are gaps."""

    label: str
    x: np.ndarray
    """(n,), rising."""
    y: np.ndarray
    """(n,)."""
    color: int = 0
    look: Look = "line"

    @property
    def kept(self) -> np.ndarray:
        """Indices of the points that are drawn."""
        return keep(self.y) if self.look in ("line", "step", "haze") else np.arange(len(self.y))

    def data(self) -> dict[str, Any]:
        """For the page's script."""
        kept = self.kept[np.isfinite(np.asarray(self.x, float)[self.kept])]
        look = {"label": self.label, "color": self.color, "look": self.look}
        return look | {"x": rounded(self.x[kept], 8), "y": rounded(self.y[kept])}


@dataclass(frozen=True)
class Band:
    """The space between two lines."""

    label: str
    x: np.ndarray
    low: np.ndarray
    high: np.ndarray
    color: int = 0
    strength: float = 0.3

    def data(self) -> dict[str, Any]:
        """For the page's script."""
        look = {"label": self.label, "color": self.color, "strength": self.strength}
        return look | {"x": rounded(self.x, 8), "low": rounded(self.low), "high": rounded(self.high)}


class Panel(Protocol):
    """One drawing of a figure."""

    title: str
    wide: bool
    """Whether it takes the whole width of the page."""

    def data(self) -> dict[str, Any]:
        """For the page's script."""

    def thinned(self) -> tuple[int, int]:
        """How many points are drawn, and of how many."""


@dataclass
class Chart:
    """A panel of lines and bands over numbers."""

    title: str
    x: str
    lines: list[Line]
    bands: list[Band] = field(default_factory=list)
    log_x: bool = False
    log_y: bool = False
    zero: bool = False
    """Whether the axis of values begins at 0."""
    top: float = 0.0
    """Where the axis of values ends; 0: where the values do."""
    start: float | None = None
    """Where the axis of x begins; None: where the lines do."""
    whole: str = ""
    """The axes that have whole numbers only: x, y, or xy."""
    mark: float | None = None
    """A value of x with a line of its own."""
    ticks: Sequence[float] = ()
    """Marks of a logarithmic axis of x; none: powers of ten, and numbers between them."""
    diagonal: bool = False
    """Whether to draw the line where y is x."""
    wide: bool = False

    def data(self) -> dict[str, Any]:
        """For the page's script."""
        axes: dict[str, Any] = {"x": self.x, "logX": self.log_x, "logY": self.log_y, "zero": self.zero, "top": self.top}
        parts = {"lines": [line.data() for line in self.lines], "bands": [band.data() for band in self.bands]}
        axes |= {"start": self.start, "whole": self.whole}
        marks = {"mark": self.mark, "ticks": rounded(np.array(self.ticks)), "diagonal": self.diagonal}
        return {"kind": "chart"} | axes | marks | parts

    def thinned(self) -> tuple[int, int]:
        """How many points are drawn, and of how many."""
        return sum(len(line.kept) for line in self.lines), sum(len(line.y) for line in self.lines)


@dataclass
class Spans:
    """A panel with a row for each client, and what it did from when to when."""

    title: str
    x: str
    names: list[str]
    kinds: list[tuple[str, int]]
    """What a span can be: its name, and its colour."""
    row: np.ndarray
    start: np.ndarray
    end: np.ndarray
    kind: np.ndarray
    marks: list[tuple[int, float, int]]
    """A row and a time with a mark: 0 for an update that was refused, 1 for a client that was lost."""
    lines: list[float]
    """Times with a line over all rows."""
    wide: bool = True

    def data(self) -> dict[str, Any]:
        """For the page's script."""
        spans = {"row": rounded(self.row), "start": rounded(self.start, 7), "end": rounded(self.end, 7)}
        marks = [[row, float(f"{time:.7g}"), which] for row, time, which in self.marks]
        shown = {
            "x": self.x,
            "names": self.names,
            "kinds": [[*kind] for kind in self.kinds],
            "marks": marks,
            "lines": self.lines,
        }
        return {"kind": "spans", **shown, **spans, "of": rounded(self.kind)}

    def thinned(self) -> tuple[int, int]:
        """All spans are drawn."""
        return len(self.row), len(self.row)


@dataclass
class Raster:
    """A panel of cells: a row for each of many clients, a column for each stretch of time, and a count in each cell."""

    title: str
    x: str
    y: str
    start: float
    end: float
    cells: np.ndarray
    """int (rows, columns)."""
    of: str
    """What is counted."""
    per_row: int
    """Clients in a row."""
    lines: list[float]
    """Times with a line over all rows."""
    wide: bool = True

    def data(self) -> dict[str, Any]:
        """For the page's script. A count above 255 is drawn, and named, as 255 or more."""
        rows, columns = self.cells.shape
        text = base64.b64encode(np.minimum(self.cells, 255).astype(np.uint8).tobytes()).decode()
        where: dict[str, Any] = {
            "x": self.x,
            "y": self.y,
            "start": self.start,
            "end": self.end,
            "of": self.of,
            "perRow": self.per_row,
        }
        where["lines"] = self.lines
        return {"kind": "raster", "rows": rows, "columns": columns, "cells": text, **where}

    def thinned(self) -> tuple[int, int]:
        """Every cell is drawn."""
        return self.cells.size, self.cells.size


@dataclass
class Dumbbells:
    """A panel with a row for each of a few clients, and some values of each on one line."""

    title: str
    x: str
    names: list[str]
    values: list[tuple[str, int, np.ndarray]]
    """Label, colour and (names,) values."""
    wide: bool = True

    def data(self) -> dict[str, Any]:
        """For the page's script."""
        dots = [{"label": label, "color": color, "x": rounded(values)} for label, color, values in self.values]
        return {"kind": "dumbbells", "x": self.x, "names": self.names, "dots": dots}

    def thinned(self) -> tuple[int, int]:
        """All are drawn."""
        return len(self.names), len(self.names)


@dataclass
class Figure:
    """A figure with its sentence and its table.

    Args:
        key: an id that no other figure of the page has.
        title: a few words.
        sentence: what the figure shows, computed from the data.
        panels: what is drawn.
        head: names of the columns of the table behind it.
        rows: cells of that table; none: there is nothing to show.
        note: how it was made, in small print.
        every: whether the table leaves rows out where there are more than ROWS.
    """

    key: str
    title: str
    sentence: str
    panels: Sequence[Panel]
    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    note: str = ""
    every: bool = False

    def html(self) -> Html:
        """The figure as part of a page."""
        panels = html.join(self._panel(number, panel) for number, panel in enumerate(self.panels))
        drawn, of = (sum(numbers) for numbers in zip((0, 0), *(panel.thinned() for panel in self.panels), strict=True))
        note = self.note
        if drawn < of:
            note += (
                f" {drawn:,} of {count(of, 'point')} are drawn: of each stretch of a line the first, the least, the "
                f"greatest and the last, at most {POINTS} a line, so that no peak is lost."
            )
        step = -(-len(self.rows) // ROWS) if self.every else 1
        summary = f"Table: {count(len(self.rows), 'row')}" + f", one of {step} is shown" * (step > 1)
        return tag(
            "figure",
            tag("h3", self.title),
            tag("p", self.sentence, class_="says"),
            tag("div", panels, class_="panels") if self.panels else "",
            tag("p", note.strip(), class_="note") if note else "",
            html.folded(summary, html.table(self.head, self.rows[::step])) if self.rows else "",
            id=self.key,
        )

    def _panel(self, number: int, panel: Panel) -> Html:
        key = f"{self.key}-{number}"
        about = f"{self.title}: {panel.title}. {self.sentence} The table below has the numbers."
        drawing = tag(
            "div", class_="chart", tabindex=0, role="img", aria_label=about, data_from=f"data-{key}", data_sync=self.key
        )
        title = tag("h4", panel.title) if panel.title else ""
        return tag("div", title, drawing, html.data(f"data-{key}", panel.data()), class_=f"panel{' wide' * panel.wide}")


def bands_of(spread: Spread, of: str, color: int = 0) -> tuple[list[Line], list[Band]]:
    """A median with its quartiles and its range, as lines and bands of a chart."""
    x = spread.time_s
    bands = [Band(f"all {of}", x, spread.least, spread.most, color, 0.14)]
    bands.append(Band("middle half", x, spread.first, spread.third, color, 0.3))
    return [Line("median", x, spread.median, color)], bands


def windows_note(panels: Sequence[Panel]) -> str:
    """How bands are made, for the small print; empty where nothing is drawn."""
    return (
        "Each window of equally many updates shows least, quartiles and greatest, so that no peak is lost." if panels else ""
    )
