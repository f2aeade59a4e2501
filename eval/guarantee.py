"""Guarantees: up to which uncertainty a query's nearest neighbour may be trusted.

Comes in: uncertainties (larger is less certain) and hits of a labelled sample of queries. Goes out:
a threshold below which the error stays under a limit, with the probability that was asked for.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64
from scipy.special import bdtr, bdtri
from scipy.stats import binom

from askance.eval.columns import Array, columns
from askance.eval.ranks import check_finite

SPENT = 0.05  # of a start's delta: on either side, on not knowing where it lies exactly
LARGER = (2, 4, 8)  # times the sample: tried to say how many queries are needed

Counts = Int64[np.ndarray, " t"]


@dataclass(frozen=True)
class Threshold:
    """A threshold and what it does in a sample of queries.

    A query is accepted if its uncertainty is at most `uncertainty`, which is NaN where there is no
    threshold; `reason` then says why.
    """

    uncertainty: float
    queries: int
    accepted: int
    misses: int
    reason: str = ""

    @property
    def coverage(self) -> float:
        """Share of the queries that are accepted, 0 to 1; NaN without a query."""
        return self.accepted / self.queries if self.queries else math.nan

    @property
    def error(self) -> float:
        """Share of misses among the accepted queries, 0 to 1; NaN where none is."""
        return self.misses / self.accepted if self.accepted else math.nan


def guaranteed(uncertainty: Array, hit: Array, alpha: float, delta: float) -> Threshold:
    """Return the largest threshold whose error is at most alpha, with probability 1 - delta.

    The error is the chance that a further query with at most this uncertainty is a miss; the
    probability is over the draw of the sample. This holds for every sample size, every
    distribution, with ties, and for uncertainties that are of no use, if the sample's queries and
    the further ones are independent draws from one distribution, against the same gallery and with
    the same head. Other classes, cameras or galleries void it. No threshold: NaN, and a reason.

    Every uncertainty of the sample is a candidate, tested from a start onwards, the most certain
    first, until a test fails. A test asks how probable so few misses were among so many accepted
    if the error were alpha (exact binomial). Why looking at the sample's own uncertainties is no
    cheating: let q be the quantile of the distribution at a start's share, and t the first
    threshold from q on at which the error passes alpha. It is fixed, its error is at least alpha,
    and so a test at t succeeds with probability `level` at most. To return something larger, all
    tests must have succeeded, also the one at t, which accepts the same as the largest candidate up
    to t. Starts with the same t share this event, so tests may use their levels' sum behind them.
    What remains is that fewer than `first` queries lie up to q, so that the tests begin behind t,
    or `least` or more below q, so that something before q is returned, or its level lent: both
    counts are binomial. Each start has an equal share of delta.

    Args:
        uncertainty: of the queries.
        hit: whether each query's nearest neighbour has its label.
        alpha: the limit of the error, between 0 and 1.
        delta: the limit of the probability that the error is larger, between 0 and 1.

    Raises:
        ValueError: an uncertainty is NaN or infinite; alpha or delta is not between 0 and 1.

    Source: fixed-sequence testing of Learn then Test, Angelopoulos et al. 2021 (arXiv 2110.01052),
        with several starts; the selective error is that of Geifman and El-Yaniv 2017 (arXiv
        1705.08500). Thresholds of the sample itself, by the argument above, are ours.

    Example:
        >>> uncertainty = np.arange(300) / 300
        >>> guaranteed(uncertainty, uncertainty < 0.8, alpha=0.1, delta=0.05).accepted
        257
    """
    _check(alpha, "alpha")
    _check(delta, "delta")
    uncertainty, hit = columns(uncertainty=uncertainty, hit=hit)
    values, accepted, misses = _counts(uncertainty, hit)
    end = _last_passed(accepted, misses, alpha, delta)
    if end < 0:
        reason = _why_none(accepted, misses, alpha, delta)
        return Threshold(math.nan, len(hit), 0, 0, reason)
    return Threshold(float(values[end]), len(hit), int(accepted[end]), int(misses[end]))


def at_threshold(uncertainty: Array, hit: Array, threshold: float) -> Threshold:
    """Return what a threshold does in a sample.

    Raises:
        ValueError: an uncertainty or the threshold is NaN or infinite, or columns don't match.

    Example:
        >>> at_threshold(np.array([0.1, 0.2, 0.3]), np.array([True, False, True]), 0.2).error
        0.5
    """
    uncertainty, hit = columns(uncertainty=uncertainty, hit=hit)
    check_finite(np.append(uncertainty, threshold))
    safe = uncertainty <= threshold
    return Threshold(threshold, len(hit), int(safe.sum()), int((safe & ~hit).sum()))


def error_bound(found: Threshold, delta: float) -> float:
    """Return what the error exceeds with probability delta at most; 1 where nothing is accepted.

    Exact for a threshold that was chosen without this sample's hits, under the assumptions of
    `guaranteed`. Of a threshold that `guaranteed` chose, alpha is the bound.

    Raises:
        ValueError: delta is not between 0 and 1.

    Source: Clopper and Pearson 1934.

    Example:
        >>> round(error_bound(Threshold(0.5, 100, 29, 0), 0.05), 3)
        0.098
    """
    _check(delta, "delta")
    return _upper(found.misses, found.accepted, delta)


def coverage_interval(found: Threshold, delta: float) -> tuple[float, float]:
    """Return between which shares of further queries are accepted, with probability 1 - delta.

    For a threshold chosen without this sample's uncertainties; each side errs with delta / 2 at
    most. 0 to 1 without a query.

    Raises:
        ValueError: delta is not between 0 and 1.

    Source: Clopper and Pearson 1934.

    Example:
        >>> [round(end, 3) for end in coverage_interval(Threshold(0.5, 20, 10, 0), 0.05)]
        [0.272, 0.728]
    """
    _check(delta, "delta")
    rejected = found.queries - found.accepted
    lower = 1 - _upper(rejected, found.queries, delta / 2)
    return lower, _upper(found.accepted, found.queries, delta / 2)


def queries_needed(alpha: float, delta: float) -> int:
    """Return from how many queries on `guaranteed` can find a threshold, if none is a miss.

    Rounded up by 1 % at most.

    Raises:
        ValueError: alpha or delta is not between 0 and 1.

    Example:
        >>> queries_needed(alpha=0.1, delta=0.05)
        42
    """
    _check(alpha, "alpha")
    _check(delta, "delta")
    n = _to_pass(alpha, delta * (1 - 2 * SPENT))
    while not _starts(n, alpha, delta)[1]:
        n += max(1, n // 100)
    return n


def _check(probability: float, name: str) -> None:
    if not 0 < probability < 1:
        raise ValueError(f"expected {name} between 0 and 1, both excluded, got {probability}")


def _counts(
    uncertainty: Float[np.ndarray, " n"], hit: Bool[np.ndarray, " n"]
) -> tuple[Float[np.ndarray, " t"], Counts, Counts]:
    """Return the distinct uncertainties, rising, and how many queries and misses lie up to each."""
    check_finite(uncertainty)
    order = uncertainty.argsort()
    values = uncertainty[order]
    last = np.flatnonzero(np.append(values[1:] != values[:-1], [True] * bool(len(values))))
    return values[last], last + 1, (~hit[order]).cumsum()[last]


def _last_passed(accepted: Counts, misses: Counts, alpha: float, delta: float) -> int:
    """Return the place of the largest threshold that passes, -1 if none does."""
    p_value = bdtr(misses, accepted, alpha)
    level, starts = _starts(int(accepted[-1]) if len(accepted) else 0, alpha, delta)
    best, allowed = -1, np.full(len(accepted), level)
    for first, least in starts:
        failed = np.flatnonzero((accepted >= first) & (p_value > allowed))
        end = (failed[0] if len(failed) else len(accepted)) - 1
        if end >= 0 and accepted[end] >= least:
            best = max(best, int(end))
        allowed += level * (accepted >= least)
    return best


def _starts(n: int, alpha: float, delta: float) -> tuple[float, list[tuple[int, int]]]:
    """Return the level of each start, and from how many accepted on to test, and to return.

    They lie at shares of 1/2, 1/4, 1/8, ..., as many as can succeed. With one alone the few most
    certain queries would decide, or thresholds that accept few could not be found.
    """
    found: tuple[float, list[tuple[int, int]]] = (0.0, [])
    shares = [0.5]
    while (more := _possible(n, shares, alpha, delta))[1]:
        found = more
        shares.append(shares[-1] / 2)
    lowest = _to_pass(alpha, delta * (1 - 2 * SPENT))
    if not found[1] and lowest <= n:  # the smallest share that leaves enough to test
        share = bdtri(lowest - 1, n, delta * SPENT) + 1e-9  # rounding must not take one away
        found = _possible(n, [float(share)], alpha, delta)
    return found


def _possible(
    n: int, shares: list[float], alpha: float, delta: float
) -> tuple[float, list[tuple[int, int]]]:
    """Return the starts at these shares of n queries; none where one of them can't succeed."""
    each = delta / len(shares)
    first = binom.ppf(each * SPENT, n, shares).astype(int)
    least = binom.isf(each * SPENT, n, shares).astype(int) + 1
    level = each * (1 - 2 * SPENT)
    possible = first.min() >= _to_pass(alpha, level) and least.max() <= n
    return level, list(zip(first.tolist(), least.tolist(), strict=True)) if possible else []


def _to_pass(alpha: float, level: float) -> int:
    """Return how many accepted queries pass a test if none of them is a miss."""
    return math.ceil(math.log(level) / math.log1p(-alpha))


def _why_none(accepted: Counts, misses: Counts, alpha: float, delta: float) -> str:
    n, needed = int(accepted[-1]) if len(accepted) else 0, queries_needed(alpha, delta)
    if n < needed:
        return f"{n} queries are too few: about {needed} are needed even if none is a miss"
    for times in LARGER:
        if _last_passed(accepted * times, misses * times, alpha, delta) >= 0:
            return f"{n} queries are too few: about {n * times} are needed if more are like these"
    least = min(least for _, least in _starts(n, alpha, delta)[1])
    lowest = (misses / accepted)[accepted >= least].min()
    return (
        f"the error is too large, or the uncertainty too weak: accepting {least} or more of the"
        f" most certain of {n} queries, it is {lowest:.3f} at best, and a sample {LARGER[-1]} times"
        " as large would not do"
    )


def _upper(count: int, total: int, delta: float) -> float:
    """Return the largest probability that `count` of `total` or fewer is not rarer than delta."""
    return float(bdtri(count, total, delta)) if count < total else 1.0
