"""Differences between heads, and how far a metric would move with other queries.

Comes in: uncertainties of one or two heads and hits, on the same queries. Goes out: a `Difference`,
by the influences of the queries or by the paired bootstrap; and resampled values. The metrics' own
intervals, `askance.eval.estimates`, need no resampling.
"""

import math
from collections.abc import Callable, Iterator

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from askance.eval import estimates, influences
from askance.eval.columns import Array, columns
from askance.eval.estimates import Estimate, Measurement
from askance.eval.metrics import r_auroc
from askance.eval.ranks import check_finite
from askance.eval.selective import aurc
from askance.pipeline.seeding import generator

# Takes queries from certain to uncertain: how often each was drawn, which are misses, and where the
# groups of tied queries start.
Statistic = Callable[
    [Int64[np.ndarray, " n"], Bool[np.ndarray, " n"], Int64[np.ndarray, " g"]], float
]


class Difference(Estimate):
    """An estimate of a difference; `p_value`: the chance of one as large if there were none."""

    p_value: float = math.nan


def difference(
    first: Array,
    second: Array,
    hit: Array,
    measure: Callable[..., Measurement] = influences.r_auroc,
) -> Difference:
    """Return how much larger a metric is with the first uncertainties than with the second.

    As `compare`, by the influences of the queries instead of resamples: a million queries take
    about a tenth of a second.

    Args:
        first: (n,) uncertainties.
        second: (n,) uncertainties of the same queries.
        hit: (n,) booleans.
        measure: `r_auroc`, `aurc`, `excess_aurc` or `augrc` of `askance.eval.influences`.

    Raises:
        ValueError: an uncertainty is NaN or infinite, or columns don't match.

    Source: DeLong et al. 1988, for AUROC.

    Example:
        >>> hit = np.arange(100) % 3 > 0
        >>> difference(-1.0 * hit, np.zeros(100), hit)
        0.5 (0.3868 to 0.5984)
    """
    first, second, hit = columns(first=first, second=second, hit=hit)
    found = estimates.difference(measure(first, hit), measure(second, hit))
    if found.reason:
        return Difference(math.nan, reason=found.reason)
    estimate = found.estimate()
    difference = Difference(estimate, estimate.lower, estimate.upper)
    share, trials = found.as_share()
    deviation = abs(2 * share - 1) * math.sqrt(trials) if share != 0.5 else 0.0
    difference.p_value = math.erfc(deviation / math.sqrt(2))
    return difference


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
        metric: any of (uncertainty, hit): `r_auroc` and `aurc` are fast, others take as long as two
            calls for each resample.
        resamples: how many to draw.
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
    if metric in WEIGHTED:
        runs = [resample(WEIGHTED[metric], u[None], hit, resamples, seed) for u in (first, second)]
        drawn = runs[0] - runs[1]
    else:
        draws = _draws(len(hit), resamples, seed)
        drawn = np.array([metric(first[i], hit[i]) - metric(second[i], hit[i]) for i in draws])
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
    if not len(hit):
        return np.full(resamples, np.nan)
    runs = []
    for run in uncertainty:  # sorted once: a resample then only counts
        order = run.argsort()
        runs.append((order, ~hit[order], np.unique(run[order], return_index=True)[1]))
    values = np.empty(resamples)
    for place, drawn in enumerate(_draws(len(hit), resamples, seed)):
        count = np.bincount(drawn, minlength=len(hit))
        each = [statistic(count[order], miss, start) for order, miss, start in runs]
        values[place] = np.mean(each)
    return values


def _draws(n: int, resamples: int, seed: str | int) -> Iterator[Int64[np.ndarray, " n"]]:
    """Yield n of n rows, drawn with replacement."""
    rng = generator("bootstrap", seed)
    return (rng.integers(n, size=n) for _ in range(resamples))


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
    count: Int64[np.ndarray, " n"], miss: Bool[np.ndarray, " n"], start: Int64[np.ndarray, " g"]
) -> float:
    """Return `r_auroc` of a resample; NaN for one without a miss or without a hit.

    Example:
        >>> count, miss = np.array([1, 1, 2]), np.array([False, True, True])
        >>> weighted_r_auroc(count, miss, np.array([0, 2]))
        0.8333333333333334
    """
    misses = np.add.reduceat(count * miss, start)
    hits = np.add.reduceat(count, start) - misses
    pairs = int(misses.sum()) * int(hits.sum())
    return float(misses @ (hits.cumsum() - hits / 2)) / pairs if pairs else math.nan


def weighted_aurc(
    count: Int64[np.ndarray, " n"], miss: Bool[np.ndarray, " n"], start: Int64[np.ndarray, " g"]
) -> float:
    """Return `aurc` of a resample, which draws as many queries as there are.

    A group of c tied queries with m misses, behind N queries with E misses, adds to the curve's
    sum over j = 1 ... c of (E + j m / c) / (N + j) = m + (E - N m / c) (H(N + c) - H(N)), with the
    harmonic numbers H.

    Example:
        >>> weighted_aurc(np.array([1, 1]), np.array([False, True]), np.array([0, 1]))
        0.25
    """
    harmonic = np.concatenate([[0], (1 / np.arange(1, len(count) + 1)).cumsum()])
    misses = np.add.reduceat(count * miss, start)
    drawn = np.add.reduceat(count, start)
    end = drawn.cumsum()
    before, errors = end - drawn, misses.cumsum() - misses
    excess = errors - before * misses / np.maximum(drawn, 1)
    area = misses + excess * (harmonic[end] - harmonic[before])
    return float(area.sum()) / len(count)


WEIGHTED: dict[Callable[..., float], Statistic] = {r_auroc: weighted_r_auroc, aurc: weighted_aurc}
