"""A scaling study in a report: what was measured over the number of clients, and what was predicted for more."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from asyncfeded.files.plain import read_csv
from asyncfeded.report.figure import Band, Chart, Figure, Line, Look
from asyncfeded.report.html import tag
from asyncfeded.report.page import Part
from asyncfeded.report.words import count, number, percent

ADVICE = "asyncfeded scale writes it into its folder (--output)"
LINE = ("scaling", "model", "rule", "ranks_per_node")
"""What runs of one line have in common."""
MEASURED = (
    ("updates_per_s", "Updates per second", True),
    ("speedup", "Speed-up in samples per second", True),
    ("efficiency", "Efficiency: speed-up over clients", False),
    ("server_busy", "Part of the time that the server is busy", False),
    ("client_wait", "Part of the time that clients wait", False),
    ("gamma_median", "gamma, median", False),
    ("tau_median", "tau, median", False),
)
"""Column, title of its panel, and whether its axis is logarithmic."""

Row = dict[str, str]


def part(folder: Path, key: str) -> Part:
    """The part of a page about a scaling study. Raises ValueError if the folder has no table of one."""
    columns = [*LINE, "clients", "seed", *(name for name, _, _ in MEASURED)]
    rows = [row for _, row in read_csv(folder / "table.csv", columns, ADVICE)]
    path = folder / "prediction.csv"
    points = [row for _, row in read_csv(path, [*LINE, "clients", "saturation"], ADVICE)] if path.exists() else []
    name = folder.absolute().name
    done = [row for row in rows if row["updates_per_s"]]
    clients = sorted({int(row["clients"]) for row in done})
    said = f"{len(done)} of {count(len(rows), 'run')} done" + (
        f", with {clients[0]} to {clients[-1]:,} clients." if clients else "."
    )
    figures = [_measured(key, done).html()] if done else []
    figures += [_predicted(f"{key}-{i}", line, mine).html() for i, (line, mine) in enumerate(_lines(points).items())]
    if not points:
        figures.append(tag("p", "It has no prediction; asyncfeded scale --predict makes one.", class_="note"))
    body = tag("section", tag("h2", f"Scaling study {name}"), tag("p", said, class_="says"), *figures, id=key)
    return Part(key, f"Scaling {name}", body)


def _lines(rows: Sequence[Row]) -> dict[tuple[str, ...], list[Row]]:
    """The rows of each line of the figures."""
    found: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[name] for name in LINE), []).append(row)
    return found


def _title(line: Sequence[str]) -> str:
    scaling, model, rule, ranks = line
    return f"{scaling} scaling, {model}, {rule}" + f", {ranks} ranks per node" * (ranks not in ("", "0"))


def _value(row: Row, name: str) -> float:
    try:
        return float(row.get(name) or math.nan)
    except ValueError:
        raise ValueError(f"column {name}: {row[name]!r} is no number; {ADVICE}") from None


def _over_seeds(rows: Sequence[Row], name: str) -> tuple[np.ndarray, ...]:
    """Numbers of clients, and least, median and greatest of a column over the seeds (clients,) each."""
    counts = sorted({int(row["clients"]) for row in rows})
    values = [[_value(row, name) for row in rows if int(row["clients"]) == n] for n in counts]
    ends: list[Callable[[list[float]], float]] = [min, lambda some: float(np.median(some)), max]
    return np.array(counts), *(np.array([end(some) for some in values]) for end in ends)


def _measured(key: str, rows: Sequence[Row]) -> Figure:
    panels, cells = [], []
    lines = _lines(rows)
    for name, title, log in MEASURED:
        drawn, bands, ticks = [], [], set[float]()
        for i, (line, mine) in enumerate(lines.items()):
            counts, low, median, high = _over_seeds(mine, name)
            ticks |= {*counts.tolist()}
            drawn.append(Line(_title(line), counts, median, i, "line" if i < 8 else "dashes"))
            if (high > low).any():
                bands.append(Band("", counts, low, high, i, 0.15))
        panels.append(Chart(title, "clients", drawn, bands, log_x=True, log_y=log, zero=not log, ticks=sorted(ticks)))
    for line, mine in lines.items():
        table = [_over_seeds(mine, name)[2] for name, _, _ in MEASURED]
        for i, clients in enumerate(sorted({int(row["clients"]) for row in mine})):
            cells.append([_title(line), f"{clients:,}", *(number(float(column[i])) for column in table)])
    head = ["", "clients", *(title for _, title, _ in MEASURED)]
    note = "Medians over the seeds; bands: their range."
    return Figure(f"{key}-measured", "Measured", _grows(lines), panels, head, cells, note)


def _grows(lines: dict[tuple[str, ...], list[Row]]) -> str:
    said = []
    for line, mine in lines.items():
        counts, _, rate, _ = _over_seeds(mine, "updates_per_s")
        efficiency = _over_seeds(mine, "efficiency")[2][-1]
        said.append(
            f"{_title(line)}: {number(rate[0], 3)} updates/s with {count(int(counts[0]), 'client')}, {number(rate[-1], 3)} "
            f"with {counts[-1]:,}, at an efficiency of {percent(float(efficiency))}"
        )
    return "; ".join(said) + "."


def _predicted(key: str, line: Sequence[str], rows: Sequence[Row]) -> Figure:
    rows = sorted(rows, key=lambda row: int(row["clients"]))
    counts, end = np.array([int(row["clients"]) for row in rows]), _value(rows[0], "saturation")
    fitted = np.array([row.get("fitted") == "True" for row in rows])
    panels = []
    for field, title, log in (
        ("updates_per_s", "Updates per second", True),
        ("client_wait", "Part of the time that clients wait", False),
    ):
        measured, analysis, simulated = (
            np.array([_value(row, f"{kind}_{field}") for row in rows]) for kind in ("measured", "analysis", "simulated")
        )
        drawn = [Line("mean value analysis", counts, analysis, 0), Line("simulation", counts, simulated, 1, "dashes")]
        marks: tuple[tuple[str, np.ndarray, Look], ...] = (
            ("measured, fitted on", fitted, "open dots"),
            ("measured, not used", ~fitted, "dots"),
        )
        for label, some, look in marks:
            known = some & np.isfinite(measured)
            if known.any():
                drawn.append(Line(label, counts[known], measured[known], 7, look))
        panels.append(Chart(title, "clients", drawn, log_x=True, log_y=log, zero=not log, mark=end, ticks=counts.tolist()))
    columns = [
        f"{kind}_{field}" for field in ("updates_per_s", "client_wait") for kind in ("measured", "analysis", "simulated")
    ]
    columns += ["simulated_queue", "simulated_gamma_median", "simulated_tau_median"]
    cells = [
        [f"{int(row['clients']):,}", *(number(x) if math.isfinite(x := _value(row, name)) else "" for name in columns)]
        for row in rows
    ]
    head = ["clients", *(name.replace("_per_s", "/s").replace("_", " ") for name in columns)]
    note = f"The vertical line is N* = {end:,.0f}: from so many clients on the server is saturated."
    return Figure(f"{key}-predicted", f"Predicted: {_title(line)}", _errs(rows, fitted, end), panels, head, cells, note)


def _errs(rows: Sequence[Row], fitted: np.ndarray, end: float) -> str:
    """What is predicted, and how far off it was where it was tested."""
    said = f"The server is saturated from {end:,.0f} clients on"
    errors = []
    for row, used in zip(rows, fitted, strict=True):
        measured = _value(row, "measured_updates_per_s")
        if math.isfinite(measured) and not used:
            errors.append((int(row["clients"]), _value(row, "simulated_updates_per_s") / measured - 1))
    if not errors:
        return f"{said}; no run tests the prediction."
    worst = max(errors, key=lambda pair: abs(pair[1]))
    return (
        f"{said}. On {count(len(errors), 'number')} of clients that it had not seen, the simulated updates/s were off by "
        f"{percent(worst[1])} at most (with {count(worst[0], 'client')})."
    )
