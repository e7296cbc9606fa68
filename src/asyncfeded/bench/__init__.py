"""How fast the server's parts are alone, each against a limit measured in the same run; nobody learns anything here.

One part per file. Everything is measured once in each of ROUNDS rounds, in turn, after a round of warm-up that does not
count; figures are medians over the rounds. They end as a table for people and, the last line of standard output, as JSON.
"""

import json
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

ROUNDS = 5
"""Measurements of each figure, besides the one of warm-up."""


def report(rows: Sequence[Sequence[str]], figures: Mapping[str, object], note: str) -> None:
    """Print figures.

    Args:
        rows: for people, in strings; the first is the heading.
        figures: for programs, as one line of JSON; floats keep 4 digits.
        note: for people, what the rows are made of.
    """
    table = Table(box=None, padding=(0, 2, 0, 0))
    for i, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if i else "left")
    for row in rows[1:]:
        table.add_row(*row)
    console = Console(highlight=False, markup=False, color_system=None, force_terminal=False, width=120)
    console.print(table)
    console.print(f"({note})\n")
    rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in figures.items()}
    print(json.dumps(rounded, allow_nan=False), flush=True)  # noqa: T201
