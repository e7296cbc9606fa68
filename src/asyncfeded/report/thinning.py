"""Fewer points that look the same: no peak of a line is lost, and of many updates each window keeps its extremes."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

POINTS = 800
"""Largest number of points of a line."""
WINDOWS = 160
"""Largest number of windows that many updates are put into."""
SPAN = 20
"""Least number of updates in a window, where there are so many."""


def keep(values: np.ndarray, most: int = POINTS) -> np.ndarray:
    """Which points of a line to draw: of each stretch of equal length the first, the least, the greatest and the last.

    Args:
        values: (n,), of any numbers; those that are not finite are least and greatest only where a stretch has no other.
        most: how many points to keep, at least 4.

    Returns:
        Rising indices (at most `most`,); all of them where they are no more.
    """
    count = len(values)
    if count <= most:
        return np.arange(count)
    edges = np.linspace(0, count, most // 4 + 1).astype(np.int64)
    finite = np.isfinite(values)
    low, high = np.where(finite, values, np.inf), np.where(finite, values, -np.inf)
    kept = [edges[:-1], edges[1:] - 1]
    for start, end in pairwise(edges.tolist()):
        kept.append(np.array([start + low[start:end].argmin(), start + high[start:end].argmax()]))
    return np.unique(np.concatenate(kept))


class Spread(NamedTuple):
    """How values are spread in each of some windows of time, (windows,) each."""

    time_s: np.ndarray
    """Middle of the window."""
    least: np.ndarray
    first: np.ndarray
    """The lower quartile."""
    median: np.ndarray
    third: np.ndarray
    """The upper quartile."""
    most: np.ndarray


def spread(times: np.ndarray, values: np.ndarray, windows: int = WINDOWS) -> Spread:
    """Least, quartiles and greatest of values in at most so many windows of equally many; what is not finite is left out."""
    finite = np.isfinite(values)
    times, values = times[finite], values[finite]
    if not len(values):
        return Spread(*np.zeros((6, 0)))
    parts = np.array_split(np.arange(len(values)), min(windows, -(-len(values) // SPAN)))
    five = np.array([np.percentile(values[part], [0, 25, 50, 75, 100]) for part in parts]).T
    middle = np.array([(times[part[0]] + times[part[-1]]) / 2 for part in parts])
    return Spread(middle, *five)
