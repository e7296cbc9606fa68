"""What may be said of a few runs: intervals of a median, tests of paired differences, ranks. Knows no run.

Distributions and exact tests are scipy's (the extra `study`).
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

LEVEL = 0.05
"""A difference whose corrected p is smaller is called significant; intervals cover the rest."""
RESAMPLES = 50_000
"""Resamples of a bootstrap; if there are no more than so many, all of them."""

SIGNS = 10_000
"""Random signs of a permutation test; if there are no more than so many, all of them."""


def scipy_stats() -> Any:  # noqa: ANN401, a module without types
    """The module scipy.stats. Raises ValueError if it is not installed."""
    try:
        from scipy import stats
    except ImportError:
        raise ValueError("studies need scipy: pip install 'asyncfeded[study]'") from None
    return stats


class Interval(NamedTuple):
    """A median over seeds with its 95 % interval."""

    median: float
    low: float
    high: float


def interval(values: Sequence[float]) -> Interval:
    """The median of values, infinite ones too, and its percentile bootstrap interval: of all resamples, if they are few."""
    array = np.sort(np.asarray(values, float))
    n = len(array)
    if n == 0 or np.isnan(array).any():
        return Interval(math.nan, math.nan, math.nan)
    if n**n <= RESAMPLES:
        chosen = np.array(list(itertools.product(range(n), repeat=n)))
    else:
        chosen = np.random.default_rng(0).integers(n, size=(RESAMPLES, n))
    medians = np.sort(np.median(array[chosen], axis=1))
    low, high = (medians[round(share * (len(medians) - 1))] for share in (LEVEL / 2, 1 - LEVEL / 2))
    return Interval(float(np.median(array)), float(low), float(high))


def permutation_p(differences: Sequence[float]) -> float:
    """Two-sided p of the mean of paired differences: how often random signs give one as large; exact up to 13 pairs.

    NaN without a pair.
    """
    array = np.asarray(differences, float)
    if len(array) < 2 or not array.any():
        return 1.0 if len(array) else math.nan
    test = scipy_stats().permutation_test(
        (array,), np.mean, permutation_type="samples", n_resamples=SIGNS - 1, vectorized=True, axis=0, **_seeded()
    )
    return float(test.pvalue)


def _seeded() -> dict[str, Any]:
    """The generator of scipy's resamples, as its version names the argument."""
    import scipy

    old = tuple(map(int, scipy.__version__.split(".")[:2])) < (1, 15)
    return {"random_state" if old else "rng": np.random.default_rng(0)}


def least_p(pairs: int) -> float:
    """The smallest p that such a test can have."""
    return max(2.0 ** (1 - pairs), 2.0 / SIGNS)


def sign_p(wins: int, losses: int) -> float:
    """Two-sided p of a sign test; ties count for neither. NaN if all are ties."""
    return float(scipy_stats().binomtest(wins, wins + losses).pvalue) if wins + losses else math.nan


def holm(ps: Sequence[float]) -> list[float]:
    """Several p, corrected for their number (Holm 1979); NaN stays, and does not count."""
    known = sorted((p, i) for i, p in enumerate(ps) if math.isfinite(p))
    corrected, so_far = [math.nan] * len(ps), 0.0
    for rank, (p, i) in enumerate(known):
        so_far = max(so_far, min(1.0, p * (len(known) - rank)))
        corrected[i] = so_far
    return corrected


class Ranks(NamedTuple):
    """Rules ranked in blocks, such as tasks (Demsar 2006)."""

    blocks: int
    mean: np.ndarray
    """(rules,): mean rank; 1 is the best."""
    p: float
    """p of Friedman's test that the rules do not differ; NaN with fewer than 3 rules or 2 blocks."""
    difference: float
    """Nemenyi's critical difference of two mean ranks at 5 %; NaN with fewer than 2 blocks."""


def ranks(costs: np.ndarray) -> Ranks:
    """Rank rules, (blocks, rules), the least cost first; equal ones share the mean of their ranks."""
    stats = scipy_stats()
    blocks, rules = costs.shape
    ranked = stats.rankdata(costs, axis=1)
    p = difference = math.nan
    if blocks > 1 and rules > 1:
        q = stats.studentized_range.ppf(1 - LEVEL, rules, np.inf) / math.sqrt(2)
        difference = float(q * math.sqrt(rules * (rules + 1) / (6 * blocks)))
    if blocks > 1 and rules > 2 and np.ptp(ranked, axis=1).any():
        p = float(stats.friedmanchisquare(*ranked.T).pvalue)
    return Ranks(blocks, ranked.mean(axis=0), p, difference)


def resolution(share: float, samples: float) -> float:
    """By how much two models of the same accuracy may differ on so many test samples by chance, in 95 of 100 cases."""
    return 1.96 * math.sqrt(2 * share * (1 - share) / samples)


def quartiles(values: np.ndarray) -> np.ndarray:
    """The quartiles (3,) of the values that are finite; NaN if none is."""
    finite = values[np.isfinite(values)]
    return np.percentile(finite, [25, 50, 75]) if len(finite) else np.full(3, np.nan)
