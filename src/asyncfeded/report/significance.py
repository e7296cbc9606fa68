"""Whether a difference between two rules is more than the spread over seeds: paired t tests, corrected after Holm."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

LEVEL = 0.05
"""A difference whose corrected p is smaller is called significant."""


class Difference(NamedTuple):
    """The mean difference of pairs, such as two rules on the same seeds."""

    pairs: int
    mean: float
    low: float
    """Lower end of its 95 % interval; NaN with fewer than two pairs."""
    high: float
    p: float
    """Two-sided p of the paired t test; NaN with fewer than two pairs, or where none of them differs."""


def paired(ours: Sequence[float], theirs: Sequence[float]) -> Difference:
    """The difference ours - theirs over pairs; a pair with a value that is not finite is left out."""
    differences = np.asarray(ours, float) - np.asarray(theirs, float)
    differences = differences[np.isfinite(differences)]
    pairs = len(differences)
    mean = float(differences.mean()) if pairs else math.nan
    if pairs < 2:
        return Difference(pairs, mean, math.nan, math.nan, math.nan)
    error = float(differences.std(ddof=1)) / math.sqrt(pairs)
    reach = quantile(pairs - 1) * error
    p = 2 * upper_tail(abs(mean) / error, pairs - 1) if error else math.nan
    return Difference(pairs, mean, mean - reach, mean + reach, p)


def upper_tail(t: float, freedom: int) -> float:
    """P(T > t) of Student's t for t >= 0 and whole degrees of freedom (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle) ** 2
    term, total = (1.0, 1.0) if freedom % 2 == 0 else (math.cos(angle), math.cos(angle))
    for k in range(2 if freedom % 2 == 0 else 3, freedom - 1, 2):
        term *= cosine * (k - 1) / k
        total += term
    if freedom % 2 == 0:
        within = math.sin(angle) * total
    else:
        within = 2 / math.pi * (angle + (math.sin(angle) * total if freedom > 1 else 0.0))
    return max(0.0, (1 - within) / 2)


def quantile(freedom: int) -> float:
    """The t that 2.5 % lie above, by bisection."""
    low, high = 0.0, 1000.0
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if upper_tail(middle, freedom) > LEVEL / 2 else (low, middle)
    return (low + high) / 2
