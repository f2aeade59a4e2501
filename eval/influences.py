"""Influences: metrics of numpy columns, with what each row contributes to their error.

Comes in: columns. Goes out: `Measurement`s, which average over runs and sets and then tell their
interval. `askance.eval.metrics` and `askance.eval.selective` say what each metric means. The
influences are derivatives of the metric by the weight of a row: closed forms, so that a million
rows take a fraction of a second.
"""

import math
from dataclasses import replace

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Num

from askance.eval.estimates import Measurement, undefined
from askance.eval.ranks import Levels, below, levels

PRIOR = 3  # rows of either kind that a variance of AUROC is taken to know beforehand

Flags = Bool[np.ndarray, " n"]
Column = Float[np.ndarray, " n"]
Ids = Int64[np.ndarray, " n"]
Numbers = Float64[np.ndarray, " n"]
Counts = Num[np.ndarray, "n c"]  # of votes for each class


def why_undefined(hit: Flags) -> str:
    """Say why R-AUROC is NaN for these hits; "" where it is not.

    Example:
        >>> why_undefined(np.array([True, True]))
        'no miss among 2 queries'
    """
    return _one_kind(~hit, "miss", "hit", "queries", "no query")


def _one_kind(flag: Flags, positive: str, negative: str, rows: str, none: str) -> str:
    if not len(flag):
        return none
    if flag.all() or not flag.any():
        return f"no {negative if flag.all() else positive} among {len(flag)} {rows}"
    return ""


def share(flag: Flags, none: str = "no query") -> Measurement:
    """Measure a plain share of rows."""
    if not len(flag):
        return undefined(none)
    mean = float(flag.mean())
    return Measurement(mean, flag - mean, len(flag))


def recall(hit: Flags, row: Ids, near: Ids) -> Measurement:
    """Measure the share of hits among queries that search one another.

    Being the nearest is mutual for about half of all rows, and such pairs hit or miss together:
    each is one trial, and its covariance is doubt.

    Args:
        hit: of each query.
        row: each query's number, at least 0.
        near: the number of its nearest row, whether that is a query or not.
    """
    measured = share(hit)
    if measured.reason:
        return measured
    size = 1 + max(int(row.max()), int(near.max()))
    mutual = np.isin(row * size + near, near * size + row)
    paired = measured.influence[mutual]
    trials = len(hit) - len(paired) // 2
    return replace(measured, trials=trials, doubt=float(paired @ paired) / len(hit) ** 2)


def auroc(
    score: Column, positive: Flags, kinds: tuple[str, str] = ("positive", "negative")
) -> Measurement:
    """Measure the chance that a positive scores above a negative; `kinds`: for the reason."""
    level = levels(score)  # refuses NaN even where the metric is undefined
    reason = _one_kind(positive, *kinds, "rows", "no row")
    if reason:
        return undefined(reason)
    positives = int(np.count_nonzero(positive))
    negatives = len(positive) - positives
    above = below(level, ~positive) / negatives  # share of negatives that a row outscores
    under = 1 - below(level, positive) / positives  # share of positives that outscore it
    value = float(above[positive].sum()) / positives
    influence = np.where(
        positive,
        (above - value) * (len(positive) / positives),
        (under - value) * (len(positive) / negatives),
    )
    doubt = _doubt(above[positive], value) + _doubt(under[~positive], value)
    return Measurement(value, influence, min(positives, negatives), doubt=doubt)


def _doubt(placement: Numbers, value: float) -> float:
    """Return what to add to the variance of a mean of placements, shares of the other kind.

    A few of them hardly show how much they vary, and a single one not at all. Their variance is
    thus blended with that of a few rows placed at random: 1 / 12 in the middle of the range.
    """
    count = len(placement)
    squares = float(np.square(placement - value).sum())
    blended = (squares + PRIOR * value * (1 - value) / 3) / (count - 1 + PRIOR)
    return max(0.0, blended / count - squares / count**2)


def r_auroc(uncertainty: Column, hit: Flags) -> Measurement:
    """Measure the chance that a miss is more uncertain than a hit."""
    measured = auroc(uncertainty, ~hit)
    return undefined(why_undefined(hit)) if measured.reason else measured


def spearman(
    first: Column, second: Column, names: tuple[str, str] = ("first column", "second column")
) -> Measurement:
    """Measure the rank correlation, -1 to 1; `names` of the columns: for the reason."""
    a, b = levels(first), levels(second)
    n = len(a)
    if n < 2:
        return undefined("one row" if n else "no row", low=-1.0)
    constant = [name for name, level in zip(names, (a, b), strict=True) if not level.any()]
    if constant:
        return undefined(f"constant {' and '.join(constant)}", low=-1.0)
    x, y = (below(level, np.ones(n)) / n - 0.5 for level in (a, b))  # centred shares of rows below
    covariance, first_square, second_square = x @ y / n, x @ x / n, y @ y / n
    value = float(np.clip(covariance / math.sqrt(first_square * second_square), -1, 1))
    # A row counts itself, and raises the ranks of all rows above it (whose sums are minus these).
    covariance_moved = x * y - (below(a, y) + below(b, x)) / n
    first_moved, second_moved = x * x - 2 * below(a, x) / n, y * y - 2 * below(b, y) / n
    drift = value / 2 * (first_moved / first_square + second_moved / second_square)
    scale = math.sqrt(first_square * second_square)
    return Measurement(value, covariance_moved / scale - drift, n, low=-1.0)


def vote_entropy(votes: Counts) -> Float64[np.ndarray, " n"]:
    """Return the entropy of each row's votes, (n, c) counts of at least one, in nats.

    Equal votes for other classes give equal entropies, to the last bit.
    """
    votes = np.sort(np.ascontiguousarray(votes), axis=1)  # so that sums have one order
    portion = votes / votes.sum(axis=1, keepdims=True)
    logarithm = np.log(portion, out=np.zeros_like(portion), where=portion > 0)
    return -(portion * logarithm).sum(axis=1)


def human_correlation(uncertainty: Column, votes: Counts) -> Measurement:
    """Measure the rank correlation with the entropy of people's votes, where some voted."""
    voted = (votes > 0).any(axis=1)
    names = "uncertainty", "entropy of votes"
    return spearman(uncertainty[voted], vote_entropy(votes[voted]), names)


def dirac_auroc(uncertainty: Column, votes: Counts) -> Measurement:
    """Measure the chance that a row people disagree on is more uncertain than an agreed one."""
    voted = (votes > 0).any(axis=1)
    disputed = (votes[voted] > 0).sum(axis=1) > 1
    return auroc(uncertainty[voted], disputed, ("disputed row", "agreed row"))


def risks(level: Levels, hit: Flags) -> Numbers:
    """Return the share of misses among the i rows of lowest level, i = 1 ... n.

    Each of a group of tied rows counts as the group's share of misses.
    """
    return _tied_misses(level, hit).cumsum() / np.arange(1, len(hit) + 1)


def _tied_misses(level: Levels, hit: Flags) -> Numbers:
    count = np.bincount(level)
    return np.repeat(np.bincount(level, weights=~hit) / count, count)


def aurc(uncertainty: Column, hit: Flags) -> Measurement:
    """Measure the mean risk over all coverages."""
    level = levels(uncertainty)
    if not len(hit):
        return undefined("no query")
    risk, place = risks(level, hit), np.arange(1, len(hit) + 1)
    count = np.bincount(level)
    start = count.cumsum() - count

    def of_row(by_place: Numbers) -> Numbers:
        return (np.add.reduceat(by_place, start) / count)[level]

    def from_here(by_place: Numbers) -> Numbers:
        return by_place[::-1].cumsum()[::-1]

    value = float(risk.mean())
    # A row's own place on the curve, the misses and the rows it adds to all later places.
    influence = of_row(risk) + ~hit * of_row(from_here(1 / place)) - of_row(from_here(risk / place))
    return Measurement(value, influence - value, len(hit))


def excess_aurc(uncertainty: Column, hit: Flags) -> Measurement:
    """Measure the mean risk beyond that of the best order."""
    found, best = aurc(uncertainty, hit), aurc((~hit).astype(np.float64), hit)
    if found.reason:
        return found
    value = max(0.0, found.value - best.value)
    return Measurement(value, found.influence - best.influence, len(hit))


def augrc(uncertainty: Column, hit: Flags) -> Measurement:
    """Measure the mean share of accepted misses over all coverages."""
    level = levels(uncertainty)
    n = len(hit)
    if not n:
        return undefined("no query")
    above = 1 - below(level, np.ones(n)) / n
    each = np.where(hit, 0.0, above)
    value = min(0.5, float(each.mean()))
    return Measurement(value, each + below(level, ~hit) / n - 2 * value, n, high=0.5)


def accuracy_at_coverage(uncertainty: Column, hit: Flags, coverage: float) -> Measurement:
    """Measure the share of hits among the most certain rows, `coverage` of all.

    The cutoff moves with the rows, too: by the hits that lie around it, within the square root of
    n places.
    """
    level = levels(uncertainty)
    n = len(hit)
    if not n:
        return undefined("no query")
    accepted = max(1, math.ceil(coverage * n - 1e-9))  # 0.07 * 100 is 7, and a rounding error
    count = np.bincount(level)
    start = count.cumsum() - count
    inside = np.clip((accepted - start) / count, 0, 1)[level]  # a tied group, by its part
    value = float(inside @ hit) / accepted
    near = math.isqrt(n)
    around = _tied_misses(level, hit)[max(0, accepted - near) : accepted + near]
    cutoff = 1 - float(around.mean())
    influence = (inside * (hit - cutoff)) * (n / accepted) + cutoff - value
    return Measurement(value, influence, accepted)
