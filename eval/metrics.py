"""Metrics: how well an uncertainty foretells errors.

Comes in: uncertainties (larger is less certain) and hits, one each per query. Goes out: float64
numbers and curves. All depend on the order of the uncertainties alone; what is undefined is NaN.
"""

import math

import numpy as np
from jaxtyping import Bool, Float, Float64


def check_finite(values: Float[np.ndarray, "..."]) -> None:
    """Stop at values that have no rank.

    Raises:
        ValueError: a value is NaN or infinite.
    """
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        first = tuple(bad[0])
        raise ValueError(
            f"expected finite values, got {len(bad)} of {values.size} that are not, the first in"
            f" row {first[-1]} ({values[first]}): a head that diverged can't be ranked"
        )


def midranks(values: Float[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """Rank from 1 (smallest) to n; tied values share the mean of their ranks.

    Raises:
        ValueError: a value is NaN or infinite.

    Example:
        >>> midranks(np.array([0.3, 0.1, 0.3, 0.9]))
        array([2.5, 1. , 2.5, 4. ])
    """
    check_finite(values)
    _, group, count = np.unique(values, return_inverse=True, return_counts=True)
    return (count.cumsum() - (count - 1) / 2)[group]


def auroc(score: Float[np.ndarray, " n"], positive: Bool[np.ndarray, " n"]) -> float:
    """Return the chance that a random positive scores above a random negative, ties one half.

    The area under the receiver operating characteristic, exact at any scale of the scores: from 0
    over 0.5 (no better than a coin) to 1. NaN where positives or negatives are missing.

    Raises:
        ValueError: a score is NaN or infinite.

    Source: Mann and Whitney 1947. The published program passes float32 scores outside 0 to 1
        through a sigmoid, which ties large ones, and returns 0 where this is NaN.

    Example:
        >>> auroc(np.array([20.0, 40.0, 30.0]), np.array([False, True, True]))
        1.0
    """
    ranks = midranks(score)
    positives = int(positive.sum())
    pairs = positives * (len(positive) - positives)
    if not pairs:
        return math.nan
    return float(ranks[positive].sum() - positives * (positives + 1) / 2) / pairs


def r_auroc(uncertainty: Float[np.ndarray, " n"], hit: Bool[np.ndarray, " n"]) -> float:
    """Return the chance that a random miss is more uncertain than a random hit, ties one half.

    From 0 over 0.5 (no better than a coin) to 1 (every miss is less certain than every hit). NaN
    without a miss or without a hit: `undefined` says which. With the classifier's correctness for
    `hit` it is the AUROC of classification.

    Raises:
        ValueError: an uncertainty is NaN or infinite.

    Source: URL benchmark (arXiv 2307.03810, section 2).

    Example:
        >>> r_auroc(np.array([0.1, 0.2, 0.2, 0.9]), np.array([True, True, False, False]))
        0.875
    """
    return auroc(uncertainty, ~hit)


def undefined(hit: Bool[np.ndarray, " n"]) -> str:
    """Say why `r_auroc` is NaN for these hits; "" where it is not.

    Example:
        >>> undefined(np.array([True, True]))
        'no miss among 2 queries'
    """
    if not len(hit):
        return "no query"
    if hit.all() or not hit.any():
        return f"no {'miss' if hit.all() else 'hit'} among {len(hit)} queries"
    return ""


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


def risk_coverage(
    uncertainty: Float[np.ndarray, " n"], hit: Bool[np.ndarray, " n"]
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Return coverages i / n and the share of misses among the i most certain queries.

    Each of a group of tied queries counts as the group's share of misses, which is the mean over
    all orders of the group. No query: both are empty.

    Raises:
        ValueError: an uncertainty is NaN or infinite.

    Source: Geifman et al. 2019 (arXiv 1805.08206, section 2); ties are ours.

    Example:
        >>> risk_coverage(np.array([0.2, 0.1, 0.2]), np.array([True, True, False]))[1]
        array([0.        , 0.25      , 0.33333333])
    """
    check_finite(uncertainty)
    _, group, count = np.unique(uncertainty, return_inverse=True, return_counts=True)
    misses = np.bincount(group, weights=~hit, minlength=len(count))
    accepted = np.arange(1, len(hit) + 1)
    return accepted / len(hit), np.repeat(misses / count, count).cumsum() / accepted


def aurc(uncertainty: Float[np.ndarray, " n"], hit: Bool[np.ndarray, " n"]) -> float:
    """Return the area under the risk-coverage curve: the mean risk over all n coverages.

    From 0 (no miss) to 1 (no hit); smaller is better, and a useless uncertainty comes to the share
    of misses. NaN without a query.

    Raises:
        ValueError: an uncertainty is NaN or infinite.

    Source: Geifman et al. 2019 (arXiv 1805.08206, section 2).

    Example:
        >>> aurc(np.array([0.1, 0.2]), np.array([True, False]))
        0.25
    """
    risk = risk_coverage(uncertainty, hit)[1]
    return float(risk.mean()) if len(risk) else math.nan


def crop_win_rate(plain: Float[np.ndarray, " n"], cropped: Float[np.ndarray, " n"]) -> float:
    """Return the share of images that are less certain cropped than plain; a tie is no win.

    From 0 to 1; NaN without an image.

    Raises:
        ValueError: an uncertainty is NaN or infinite.

    Source: URL benchmark (arXiv 2307.03810), `croppedHasBiggerUnc` of its program.

    Example:
        >>> crop_win_rate(np.array([0.1, 0.2]), np.array([0.3, 0.2]))
        0.5
    """
    check_finite(plain)
    check_finite(cropped)
    return float((plain < cropped).mean()) if len(plain) else math.nan
