"""Resampled intervals: how far a metric, or a difference, would move with other queries.

Comes in: a metric, uncertainties and hits. Goes out: its values over resampled queries, and their
95 % interval. The metrics' own intervals, `askance.eval.estimates`, need no resampling.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from askance.eval.columns import Array, columns
from askance.eval.estimates import Estimate
from askance.eval.metrics import r_auroc
from askance.eval.ranks import check_finite
from askance.pipeline.seeding import generator

CELLS = 2**18  # counts held at a time: they stay in the processor's cache

Counts = Int64[np.ndarray, "n r"]
# Takes queries from certain to uncertain: how often each was drawn in each of r resamples, which
# are misses, and where the groups of tied queries start. Returns a value per resample.
Statistic = Callable[
    [Counts, Bool[np.ndarray, " n"], Int64[np.ndarray, " g"]], Float64[np.ndarray, " r"]
]


class Difference(Estimate):
    """An estimate of a difference; `p_value`: the chance of one as large if there were none."""

    p_value: float = math.nan


def compare(
    first: Array,
    second: Array,
    hit: Array,
    metric: Callable[[np.ndarray, np.ndarray], float] = r_auroc,
    resamples: int = 1000,
    seed: str | int = 0,
) -> Difference:
    """Return how much larger a metric is with the first uncertainties than with the second.

    Both are drawn on the same queries, so that what makes queries hard for both cancels out. NaN
    where the metric is undefined; resamples where it is are dropped.

    Args:
        first: (n,) uncertainties.
        second: (n,) uncertainties of the same queries.
        hit: (n,) booleans.
        metric: any of (uncertainty, hit): `r_auroc`, `aurc`, one of your own.
        resamples: how many to draw; each takes as long as two calls of the metric.
        seed: of the draws.

    Raises:
        ValueError: an uncertainty is NaN or infinite, or columns don't match.

    Source: the paired bootstrap, Efron and Tibshirani 1993, chapters 8 and 16.

    Example:
        >>> hit = np.arange(100) % 3 > 0
        >>> compare(-1.0 * hit, np.zeros(100), hit)
        0.5 (0.5 to 0.5)
    """
    first, second, hit = columns(first=first, second=second, hit=hit)
    values = metric(first, hit), metric(second, hit)
    if any(map(math.isnan, values)):
        reasons = (getattr(value, "reason", "") for value in values)
        return Difference(math.nan, reason=next(filter(None, reasons), "the metric is undefined"))
    rng = generator("bootstrap", seed)
    drawn = np.empty(resamples)
    for place in range(resamples):
        rows = rng.integers(len(hit), size=len(hit))
        drawn[place] = metric(first[rows], hit[rows]) - metric(second[rows], hit[rows])
    drawn = drawn[~np.isnan(drawn)]
    below, above = ((side.sum() + 1) / (len(drawn) + 1) for side in (drawn <= 0, drawn >= 0))
    found = Difference(values[0] - values[1], *interval(drawn))
    found.p_value = min(1.0, 2 * float(min(below, above)))
    return found


def resample(
    statistic: Statistic,
    uncertainty: Float[np.ndarray, "s n"],
    hit: Bool[np.ndarray, " n"],
    resamples: int = 1000,
    seed: str | int = 0,
) -> Float64[np.ndarray, " {resamples}"]:
    """Return the mean of a metric over s runs of a head, for each of many draws of its queries.

    Each resample draws n of the n queries with replacement, the same for all runs, and for every
    head on this set: heads compare in pairs. NaN where the metric is undefined, as R-AUROC is for
    a resample without a miss.

    Args:
        statistic: `weighted_r_auroc`, `weighted_aurc`, or another of their kind.
        uncertainty: one row per run.
        hit: of the queries, the same for all runs.
        resamples: how many to draw.
        seed: of the draws; sets drawn independently need different ones.

    Raises:
        ValueError: an uncertainty is NaN or infinite.

    Source: the bootstrap, Efron and Tibshirani 1993, chapter 6.

    Example:
        >>> uncertainty, hit = np.array([[0.1, 0.3, 0.2]]), np.array([True, True, False])
        >>> resample(weighted_r_auroc, uncertainty, hit, resamples=4)
        array([ 1., nan,  1., nan])
    """
    check_finite(uncertainty)
    rng = generator("bootstrap", seed)
    order = uncertainty.argsort(axis=1)
    starts = [
        np.unique(run[by], return_index=True)[1] for run, by in zip(uncertainty, order, strict=True)
    ]
    value = np.full(resamples, np.nan)
    chunk = max(1, CELLS // max(1, len(hit)))
    for first in range(0, resamples if len(hit) else 0, chunk):
        part = value[first : first + chunk]
        count = _draw(rng, len(hit), len(part))
        runs = [statistic(count[by], ~hit[by], at) for by, at in zip(order, starts, strict=True)]
        part[:] = np.mean(runs, axis=0)
    return value


def interval(resampled: Float64[np.ndarray, " r"]) -> tuple[float, float]:
    """Return the middle 95 % of resampled values: lower and upper.

    NaN are dropped; of NaN only, both are NaN. It covers the choice of queries, not that of seeds.

    Source: the percentile interval, Efron and Tibshirani 1993, section 13.3.

    Example:
        >>> interval(np.append(np.arange(101.0), np.nan))
        (2.5, 97.5)
    """
    kept = resampled[~np.isnan(resampled)]
    lower, upper = np.quantile(kept, [0.025, 0.975]) if len(kept) else (math.nan, math.nan)
    return float(lower), float(upper)


def weighted_r_auroc(
    count: Counts, miss: Bool[np.ndarray, " n"], start: Int64[np.ndarray, " g"]
) -> Float64[np.ndarray, " r"]:
    """Return `r_auroc` of each resample; NaN for one without a miss or without a hit.

    Example:
        >>> count = np.array([[1, 2], [1, 0], [1, 1]])
        >>> weighted_r_auroc(count, np.array([False, True, True]), np.array([0, 2]))
        array([0.75, 1.  ])
    """
    misses = np.add.reduceat(count * miss[:, None], start)
    hits = np.add.reduceat(count, start) - misses
    below = hits.cumsum(axis=0) - hits
    wins = (misses * (below + hits / 2)).sum(axis=0)
    pairs = misses.sum(axis=0) * hits.sum(axis=0)
    return np.divide(wins, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)


def weighted_aurc(
    count: Counts, miss: Bool[np.ndarray, " n"], start: Int64[np.ndarray, " g"]
) -> Float64[np.ndarray, " r"]:
    """Return `aurc` of each resample, which draws as many queries as there are.

    A group of c tied queries with m misses, behind N queries with E misses, adds to the curve's
    sum over j = 1 ... c of (E + j m / c) / (N + j) = m + (E - N m / c) (H(N + c) - H(N)), with the
    harmonic numbers H.

    Example:
        >>> count = np.array([[1, 2], [1, 0]])
        >>> weighted_aurc(count, np.array([False, True]), np.array([0, 1]))
        array([0.25, 0.  ])
    """
    harmonic = np.concatenate([[0], (1 / np.arange(1, len(count) + 1)).cumsum()])
    misses = np.add.reduceat(count * miss[:, None], start)
    drawn = np.add.reduceat(count, start)
    end = drawn.cumsum(axis=0)
    before, errors = end - drawn, misses.cumsum(axis=0) - misses
    excess = errors - before * misses / np.maximum(drawn, 1)
    area = misses + excess * (harmonic[end] - harmonic[before])
    return area.sum(axis=0) / len(count)


def _draw(rng: np.random.Generator, n: int, resamples: int) -> Counts:
    """Draw n of n queries with replacement, `resamples` times, and count each query."""
    drawn = rng.integers(n, size=(resamples, n))
    cell = drawn * resamples + np.arange(resamples)[:, None]
    return np.bincount(cell.ravel(), minlength=n * resamples).reshape(n, resamples)
