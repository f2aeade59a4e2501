"""Ranks: the order of values, and the plain numbers that follow from it.

Comes in: numpy columns. Goes out: midranks, AUROC and Spearman's correlation, exact in float64 and
without an interval; `askance.eval.metrics` has the metrics proper.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Shaped

from askance.eval.columns import Array, columns

Levels = Int64[np.ndarray, " n"]


def check_finite(values: Float[np.ndarray, "..."]) -> None:
    """Stop at values that have no rank.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    finite = np.isfinite(values)
    if finite.all():
        return
    bad = np.argwhere(~finite)
    first = tuple(bad[0])
    raise ValueError(
        f"expected finite values, got {len(bad)} of {values.size} that are not, the first in"
        f" row {first[-1]} ({values[first]}): leave out or mend these rows"
    )


def levels(values: Float[np.ndarray, " n"]) -> Levels:
    """Number the distinct values from 0 (smallest); tied values share their number.

    Raises:
        ValueError: a value is NaN or infinite.

    Example:
        >>> levels(np.array([0.3, 0.1, 0.3, 0.9]))
        array([1, 0, 1, 2])
    """
    check_finite(values)
    if values.dtype.itemsize > 4:
        return np.unique(values, return_inverse=True)[1]
    key = _bits(values) << 32
    key |= np.arange(len(key))  # a single sort of integers is the faster one
    key.sort()
    row = key & 0xFFFFFFFF
    key >>= 32
    rises = np.zeros(len(key), bool)
    rises[1:] = key[1:] != key[:-1]
    level = np.empty(len(key), np.int64)
    level[row] = rises.cumsum()
    return level


def _bits(values: Float[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """Return integers in the order of values of up to 32 bits.

    A float's bits are in its own order, but for the sign: negative ones are turned round.
    """
    bits = (values.astype(np.float32) + np.float32(0)).view(np.int32)  # + 0: -0.0 becomes 0.0
    bits ^= (bits >> 31) & np.int32(0x7FFFFFFF)
    return bits.astype(np.int64)


def below(level: Levels, weight: Shaped[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Return for each row the weight of all rows of lower level, and half of its own level's.

    Example:
        >>> below(np.array([1, 0, 1, 2]), np.array([5, 1, 3, 2]))
        array([ 5. ,  0.5,  5. , 10. ])
    """
    total = np.bincount(level, weights=weight)
    return np.asarray((total.cumsum() - total / 2)[level], np.float64)


def midranks(values: Float[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Rank from 1 (smallest) to n; tied values share the mean of their ranks.

    Raises:
        ValueError: a value is NaN or infinite.

    Example:
        >>> midranks(np.array([0.3, 0.1, 0.3, 0.9]))
        array([2.5, 1. , 2.5, 4. ])
    """
    return below(levels(values), np.ones(len(values))) + 0.5


def auroc(score: Array, positive: Array) -> float:
    """Return the chance that a random positive scores above a random negative, ties one half.

    The area under the receiver operating characteristic, exact at any scale of the scores: from 0
    over 0.5 (no better than a coin) to 1. NaN where positives or negatives are missing. The value
    only, in less time than metrics with an interval take.

    Args:
        score: (n,) floats.
        positive: (n,) booleans.

    Raises:
        ValueError: a score is NaN or infinite, or columns don't match.

    Source: Mann and Whitney 1947. The published program passes float32 scores outside 0 to 1
        through a sigmoid, which ties large ones, and returns 0 where this is NaN.

    Example:
        >>> auroc(np.array([20.0, 40.0, 30.0]), np.array([False, True, True]))
        1.0
    """
    score, positive = columns(score=score, positive=positive)
    check_finite(score)
    positives = int(np.count_nonzero(positive))
    pairs = positives * (len(positive) - positives)
    if not pairs:
        return math.nan
    narrow = score.dtype.itemsize <= 4
    return (_packed_wins(score, positive) if narrow else _wins(score, positive)) / pairs


def _wins(score: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """Count the pairs of a positive above a negative, ties one half."""
    negatives, positives = np.sort(score[~positive]), np.sort(score[positive])
    first, last = (int(np.searchsorted(negatives, positives, s).sum()) for s in ("left", "right"))
    return (first + last) / 2


def _packed_wins(score: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """Count as `_wins` does, by a single sort of integers: score and, in the lowest bit, label."""
    key = _bits(score)
    key <<= 1
    key |= positive
    key.sort()
    place = np.flatnonzero(key & 1)  # of the positives; tied negatives stand before them
    wins = int(place.sum()) - len(place) * (len(place) - 1) // 2
    first = place[place > 0]
    first = first[key[first - 1] == key[first] - 1]  # positives next to a tied negative
    tied = key[first]
    negatives = first - np.searchsorted(key, tied - 1)
    positives = np.searchsorted(key, tied, "right") - first
    return wins - float(negatives @ positives) / 2


def spearman(first: Float[np.ndarray, " n"], second: Float[np.ndarray, " n"]) -> float:
    """Return the rank correlation, -1 to 1: Pearson's, of midranks. NaN where one is constant.

    Raises:
        ValueError: a value is NaN or infinite.

    Example:
        >>> spearman(np.array([1.0, 2.0, 3.0]), np.array([2.0, 9.0, 9.5]))
        1.0
    """
    a, b = midranks(first), midranks(second)
    a, b = a - (len(a) + 1) / 2, b - (len(b) + 1) / 2
    scale = math.sqrt((a @ a) * (b @ b))
    return float(np.clip(a @ b / scale, -1, 1)) if scale else math.nan
