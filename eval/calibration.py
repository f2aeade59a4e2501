"""Calibration of percentiles: how many images fall into each bin, and how many of them are wrong.

Comes in: percentiles among the upstream images, and which queries are wrong. Goes out: a `Bin` for
each tenth of the scale.
"""

import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

BINS = 10


class Bin(NamedTuple):
    """The images whose percentile lies in a part of the scale.

    `share` is theirs of all images, `wrong` the share of them that is wrong, with its 95 % Wilson
    interval: NaN in an empty bin.
    """

    start: float
    stop: float
    images: int
    share: float
    wrong: float
    lower: float
    upper: float


def calibration(
    percentile: Float[np.ndarray, " n"], wrong: Bool[np.ndarray, " n"], bins: int = BINS
) -> list[Bin]:
    """Count images and errors in equal bins of the percentile; NaN percentiles are left out.

    On images like the upstream's each bin has the same share of them: the scale is calibrated. A
    useful uncertainty has more errors the higher the bin. A percentile on an edge belongs to the
    bin above it, 1 to the last.

    Source: ours; the interval is Wilson's (1927), by scipy.

    Example:
        >>> [(bin.images, bin.wrong) for bin in calibration(
        ...     np.array([0.1, 0.5, 0.7, 1.0]), np.array([False, False, True, True]), bins=2)]
        [(1, 0.0), (3, 0.6666666666666666)]
    """
    defined = np.isfinite(percentile)
    place = np.clip((percentile[defined] * bins).astype(int), 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    errors = np.bincount(place, weights=wrong[defined], minlength=bins).astype(int)
    return [
        Bin(i / bins, (i + 1) / bins, int(n), float(n / max(1, len(place))), *_rate(int(k), int(n)))
        for i, (k, n) in enumerate(zip(errors, counts, strict=True))
    ]


def _rate(errors: int, count: int) -> tuple[float, float, float]:
    if not count:
        return math.nan, math.nan, math.nan
    from scipy.stats import binomtest  # takes a second to import

    interval = binomtest(errors, count).proportion_ci(method="wilson")
    return errors / count, float(interval.low), float(interval.high)
