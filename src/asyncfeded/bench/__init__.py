"""Speed of the parts of the server, each against a limit that is measured in the same run. No model is trained here.

Each file measures one part. Everything is measured once in each of ROUNDS rounds, in turn, after a round of warm-up that
does not count. Figures are medians over the rounds, printed as a table for people and as JSON, the last line of standard
output.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

ROUNDS = 5
"""Number of measurements of each figure, besides the one of warm-up."""


def report(rows: Sequence[Sequence[str]], figures: Mapping[str, object], note: str) -> None:
    """Print figures.

    Args:
        rows: for people, as strings; the first row is the heading.
        figures: for programs, as one line of JSON; floats keep 4 digits. The machine is added.
        note: for people; explains how the rows were measured.
    """
    table = Table(box=None, padding=(0, 2, 0, 0))
    for i, column in enumerate(rows[0]):
        table.add_column(column, justify="right" if i else "left")
    for row in rows[1:]:
        table.add_row(*row)
    console = Console(highlight=False, markup=False, color_system=None, force_terminal=False, width=120)
    console.print(table)
    named = machine()
    console.print(f"({note}; on {named})\n")
    figures = {**figures, "machine": named}
    rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in figures.items()}
    print(json.dumps(rounded, allow_nan=False), flush=True)  # noqa: T201


def machine() -> str:
    """The processor of this machine, its cores that this process may use, and its system."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
    return f"{name}, {len(os.sched_getaffinity(0))} core(s), Linux {platform.release()}"
