"""The mixture: known and new images in equal parts, as a deployed model meets them.

Comes in: embeddings, labels and uncertainties of an upstream and a downstream set, numpy arrays or
torch tensors. Goes out: rows to mix, labels that never collide, and `Estimate`s.
"""

import math
from typing import TypeAlias

import numpy as np
from jaxtyping import Int64

from askance.eval import influences
from askance.eval.columns import Array, columns
from askance.eval.estimates import Estimate
from askance.eval.metrics import hits
from askance.eval.ranks import check_finite
from askance.pipeline.seeding import generator

LIMIT = 50_000  # rows of either set, as in the published program

Set: TypeAlias = tuple[Array, Array, Array]  # embedding (n, d), label (n,), uncertainty (n,)


def mixture(
    upstream: int, downstream: int, seed: int = 0, limit: int = LIMIT
) -> tuple[Int64[np.ndarray, " k"], Int64[np.ndarray, " k"]]:
    """Draw k rows of either set without replacement; k is the smallest of the three numbers.

    Args:
        upstream: how many rows the upstream set has.
        downstream: how many rows the downstream set has.
        seed: of the draw; the same on every machine.
        limit: rows of either set at most.

    Returns:
        The rows of the upstream set and those of the downstream set, each in rising order.

    Raises:
        ValueError: a number is negative.

    Example:
        >>> [len(rows) for rows in mixture(200, 150)]
        [150, 150]
    """
    if min(upstream, downstream, limit) < 0:
        raise ValueError(
            f"expected no negative number of rows, got {upstream} upstream, {downstream}"
            f" downstream and a limit of {limit}: pass how many rows there are"
        )
    k = min(upstream, downstream, limit)
    rng = generator("mixture", seed)
    first, second = (np.sort(rng.choice(n, k, replace=False)) for n in (upstream, downstream))
    return first.astype(np.int64), second.astype(np.int64)


def union_label(upstream_label: Array, downstream_label: Array) -> Int64[np.ndarray, " n"]:
    """Return labels for the upstream rows and then the downstream rows, with none in common.

    Raises:
        ValueError: labels that are not integers, (n,) each.

    Example:
        >>> union_label(np.array([7, 7, 3]), np.array([3, -1]))
        array([1, 1, 0, 3, 2])
    """
    both = [columns(label=label)[0] for label in (upstream_label, downstream_label)]
    classes, upstream = np.unique(both[0], return_inverse=True)
    downstream = np.unique(both[1], return_inverse=True)[1]
    return np.concatenate([upstream, downstream + len(classes)]).astype(np.int64)


def mixed_r_auroc(upstream: Set, downstream: Set, seed: int = 0, limit: int = LIMIT) -> Estimate:
    """Return R-AUROC where every row searches a half-and-half mixture of the two sets.

    From 0 over 0.5 to 1; NaN without a miss or without a hit.

    Args:
        upstream: embedding (n, d), label (n,) and uncertainty (n,) of the upstream set.
        downstream: the same of the downstream set; its labels may coincide with the upstream's.
        seed: of the draw of rows.
        limit: rows of either set at most.

    Raises:
        ValueError: a value is NaN or infinite, or columns don't match.

    Source: URL benchmark (arXiv 2307.03810), `auroc_correct_mixed` of its program, whose labels
        may collide: see `askance.eval.published`.
    """
    parts = [columns(embedding=e, label=y, uncertainty=u) for e, y, u in (upstream, downstream)]
    drawn = mixture(len(parts[0][0]), len(parts[1][0]), seed, limit)
    picked = [[column[rows] for column in part] for part, rows in zip(parts, drawn, strict=True)]
    (known, known_label, known_uncertainty), (new, new_label, new_uncertainty) = picked
    uncertainty = np.concatenate([known_uncertainty, new_uncertainty])
    check_finite(uncertainty)
    if len(uncertainty) < 2:
        return Estimate(math.nan, reason="no query")
    hit = hits(np.concatenate([known, new]), union_label(known_label, new_label))
    return influences.r_auroc(uncertainty, hit).estimate()


def ood_auroc(upstream_uncertainty: Array, downstream_uncertainty: Array) -> Estimate:
    """Return the chance that a new image is more uncertain than a known one, ties one half.

    From 0 over 0.5 to 1; NaN without either. The sets may be of different size.

    Args:
        upstream_uncertainty: (n,) floats, of known images.
        downstream_uncertainty: (m,) floats, of new images.

    Raises:
        ValueError: an uncertainty is NaN or infinite, or a column is not of floats, (n,).

    Source: URL benchmark (arXiv 2307.03810), `auroc_ood` of its program.

    Example:
        >>> float(ood_auroc(np.array([0.1, 0.2]), np.array([0.2, 0.3, 0.4])))
        0.9166666666666666
    """
    (known,) = columns(upstream_uncertainty=upstream_uncertainty)
    (new,) = columns(downstream_uncertainty=downstream_uncertainty)
    downstream = np.arange(len(known) + len(new)) >= len(known)
    names = ("downstream row", "upstream row")
    return influences.auroc(np.concatenate([known, new]), downstream, names).estimate()
