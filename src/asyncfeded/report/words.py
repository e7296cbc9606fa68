"""How numbers and lists are written in a report."""

import math
from collections.abc import Sequence

import numpy as np

SPACE = "\N{NO-BREAK SPACE}"


def number(value: float, digits: int = 4) -> str:
    """A number for people: `12,345`, `0.01234`, `1.2e-07`; `not a number` and `infinite` are said in words."""
    if math.isnan(value):
        return "not a number"
    if math.isinf(value):
        return "infinite" if value > 0 else "minus infinite"
    if value == 0:
        return "0"
    if abs(value) < 1e9 and (float(value).is_integer() or abs(value) >= 10 ** (digits - 1)):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(part: float) -> str:
    """A share in percent."""
    if not math.isfinite(part):
        return "unknown"
    text = f"{100 * part:.3g}" if abs(part) < 0.1 else f"{100 * part:.1f}"
    return f"{text}{SPACE}%"


def seconds(value: float) -> str:
    """A time for people."""
    if not math.isfinite(value):
        return "unknown"
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if value >= 2 * size:
            return f"{value / size:.3g}{SPACE}{unit}"
    if value >= 0.1 or value == 0:
        return f"{value:.3g}{SPACE}s"
    return f"{1e3 * value:.3g}{SPACE}ms" if value >= 1e-4 else f"{1e6 * value:.3g}{SPACE}µs"


def count(how_many: int, one: str, many: str = "") -> str:
    """`1 update`, `2 updates`."""
    return f"{how_many:,} {one if how_many == 1 else many or one + 's'}"


def listed(names: Sequence[str], most: int = 6) -> str:
    """`a, b and c`; of many names the first, and how many others there are."""
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most:,} others"
    return " and ".join(filter(None, (", ".join(names[:-1]), *names[-1:])))


def rounded(values: np.ndarray, digits: int = 5) -> list[float | int | None]:
    """Numbers for JSON, with as many digits as a drawing needs; None is what cannot be drawn."""
    values = np.asarray(values)
    if values.dtype.kind in "iub":
        return [int(value) for value in values]
    return [float(f"{value:.{digits}g}") if math.isfinite(value) else None for value in values.tolist()]
