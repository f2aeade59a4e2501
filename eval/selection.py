"""Selection: which images of a pool to label next.

Comes in: uncertainties (larger is less certain) and embeddings of the pool, as plain arrays. Goes
out: the rows to label, in the order of choice. Nothing is drawn by lot. Of equal rows `uncertain`
and `diverse` choose the first, `representative` any: a matrix product rounds by a row's place.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64

from askance.eval.ranks import check_finite
from askance.eval.retrieval import neighbours

AT_A_TIME = 256  # rows whose gain is computed together


@dataclass(frozen=True)
class Selection:
    """The rows chosen, in order, and how far each was from all before it.

    `distance` is 1 - cosine, 0 to 2, to the nearest row labelled or chosen before; NaN for a row
    that had none before it, or was not chosen for its distance.
    """

    row: Int64[np.ndarray, " k"]
    distance: Float64[np.ndarray, " k"]


def uncertain(uncertainty: Float[np.ndarray, " n"], count: int) -> Selection:
    """Choose the most uncertain rows.

    Raises:
        ValueError: fewer rows than `count`, or an uncertainty that is NaN or infinite.

    Source: uncertainty sampling, Lewis and Gale 1994 (arXiv cmp-lg/9407020).

    Example:
        >>> uncertain(np.array([0.1, 0.9, 0.5]), 2).row
        array([1, 2])
    """
    _check(len(uncertainty), count)
    check_finite(uncertainty)
    row = np.argsort(-uncertainty, kind="stable")[:count]
    return Selection(row, np.full(count, np.nan))


def nearest_labelled(
    embedding: Float32[np.ndarray, "n d"],
    labelled: Int64[np.ndarray, " m"],
    advance: Callable[[int], None] = lambda count: None,
) -> Float64[np.ndarray, " n"]:
    """Return each row's cosine to the nearest labelled row; infinity for the labelled ones.

    Args:
        embedding: of the pool.
        labelled: rows that have a label already, in any order; none: no cosine is above -1.
        advance: told how many more of the rows without a label are done.

    Raises:
        ValueError: a row that is not finite.

    Example:
        >>> nearest_labelled(np.array([[1, 0], [3, 4], [0, 2]], np.float32), np.array([0]))
        array([inf, 0.6, 0. ])
    """
    nearest, known = np.full(len(embedding), -1.0), np.unique(labelled)
    nearest[known] = np.inf
    left = np.flatnonzero(nearest == -1)
    if len(known) and len(left):
        found = neighbours(embedding, advance, queries=left, gallery=known)
        nearest[left] = found.similarity
    return nearest


def diverse(
    embedding: Float32[np.ndarray, "n d"],
    count: int,
    nearest: Float64[np.ndarray, " n"] | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Selection:
    """Choose rows by farthest-first: each time the row farthest from all labelled and chosen ones.

    The largest angle of a row to the nearest chosen one is at most twice what any choice of as many
    could reach; so the largest distance, 1 - cosine, is at most four times that. Lengths don't
    matter; a zero vector is at a right angle to all. Where nothing is labelled, the first choice is
    the row nearest the mean direction. Takes O(n d) for each row chosen, and memory for one
    normalised copy.

    Args:
        embedding: of the pool.
        count: how many to choose.
        nearest: what `nearest_labelled` returns: labelled rows are never chosen, and cover others;
            None: nothing is labelled.
        advance: told of each row chosen.

    Raises:
        ValueError: fewer rows without a label than `count`, or a row that is not finite.

    Source: k-center greedy, Sener and Savarese 2018 (arXiv 1708.00489, algorithm 1), which is
        Gonzalez 1985; they start from a labelled pool. The start without one is ours.

    Example:
        >>> diverse(np.array([[1, 0], [1, 0.1], [0, 1], [1, 1]], np.float32), 2).row
        array([3, 0])
    """
    nearest = _uncovered(embedding, nearest, count)
    unit = _normalised(embedding)
    rows, distance = np.empty(count, np.int64), np.full(count, np.nan)
    for place in range(count):
        if place or np.isinf(nearest).any():
            row = nearest.argmin()
            distance[place] = max(0.0, 1 - nearest[row])
        else:
            row = _cosine(unit, unit.mean(axis=0)).argmax()
        rows[place], nearest[row] = row, np.inf
        np.maximum(nearest, _cosine(unit, unit[row]), out=nearest)
        advance(1)
    return Selection(rows, distance)


def representative(
    embedding: Float32[np.ndarray, "n d"],
    count: int,
    weight: Float[np.ndarray, " n"] | None = None,
    nearest: Float64[np.ndarray, " n"] | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> Selection:
    """Choose rows that others are like: each time the row that brings the pool closest.

    Greedily maximises the sum over rows of weight times cosine to the nearest labelled or chosen
    row: at least 63 % of what the best choice would add. Rows that stand alone, which `diverse`
    prefers, bring little. Takes O(n^2 d), more where gains stay close.

    Args:
        embedding: of the pool.
        count: how many to choose.
        weight: how much it matters that a row has a neighbour, not negative; None: one each. With
            uncertainties as percentiles, the chosen represent the uncertain part of the pool.
        nearest: what `nearest_labelled` returns: labelled rows are never chosen, and cover others;
            None: nothing is labelled.
        advance: told of each row chosen.

    Raises:
        ValueError: fewer unlabelled rows than `count`, a row not finite, or a negative weight.

    Source: facility location (Wei et al. 2015, Submodularity in Data Subset Selection and Active
        Learning), by lazy greedy (Minoux 1978): gains only fall. The weights are ours.

    Example:
        >>> pool = np.array([[1, 0], [1, 0.1], [1, 0.2], [0, 1]], np.float32)
        >>> representative(pool, 2).row
        array([2, 3])
    """
    covered = _uncovered(embedding, nearest, count).astype(np.float32)
    unit = _normalised(embedding)
    matters = np.ones(len(unit), np.float32) if weight is None else _weights(weight)
    known = np.isinf(covered)
    bound = np.where(known, -np.inf, np.inf)  # no row's gain is above
    rows, distance = np.empty(count, np.int64), np.full(count, np.nan)
    for place in range(count):
        row = rows[place] = _largest_gain(unit, matters, covered, bound)
        if place or known.any():
            distance[place] = max(0.0, 1 - covered[row])
        np.maximum(covered, _cosine(unit, unit[row]), out=covered)
        bound[row] = -np.inf
        advance(1)
    return Selection(rows, distance)


def _weights(weight: Float[np.ndarray, " n"]) -> Float32[np.ndarray, " n"]:
    if not (weight >= 0).all():
        raise ValueError(f"expected weights that are not negative, got {weight.min()}")
    return weight.astype(np.float32)


def _largest_gain(
    unit: Float32[np.ndarray, "n d"],
    weight: Float32[np.ndarray, " n"],
    nearest: Float32[np.ndarray, " n"],
    bound: Float64[np.ndarray, " n"],
) -> int:
    """Return the row that gains most, and lower the bounds of the rows looked at to their gains."""
    stale = np.ones(len(unit), bool)
    while stale[best := int(bound.argmax())]:
        order = np.where(stale, -bound, np.inf)
        some = np.argpartition(order, min(AT_A_TIME, len(order)) - 1)[:AT_A_TIME]
        some = some[stale[some] & (bound[some] > -np.inf)]
        bound[some] = weight @ np.maximum(unit @ unit[some].T - nearest[:, None], 0)
        stale[some] = False
    return best


def _uncovered(
    embedding: Float32[np.ndarray, "n d"], nearest: Float64[np.ndarray, " n"] | None, count: int
) -> Float64[np.ndarray, " n"]:
    """Return a copy of what is near each row at the start, and check the count."""
    nearest = np.full(len(embedding), -1.0) if nearest is None else nearest.copy()
    _check(int(np.isfinite(nearest).sum()), count)
    return nearest


def _check(rows: int, count: int) -> None:
    if not 1 <= count <= rows:
        raise ValueError(f"expected a count from 1 to the {rows} rows without a label, got {count}")


def _normalised(embedding: Float32[np.ndarray, "n d"]) -> Float32[np.ndarray, "n d"]:
    norm = np.sqrt(np.einsum("nd,nd->n", embedding, embedding, dtype=np.float64))
    bad = np.flatnonzero(~np.isfinite(norm))
    if len(bad):
        raise ValueError(
            f"expected finite embeddings, got NaN or infinity in {len(bad)} of {len(norm)} rows,"
            f" the first is row {bad[0]}: leave these images out"
        )
    return embedding / np.where(norm == 0, 1, norm)[:, None].astype(np.float32)


def _cosine(
    unit: Float32[np.ndarray, "n d"], other: Float32[np.ndarray, " d"]
) -> Float32[np.ndarray, " n"]:
    # Not a matrix product, whose rounding depends on a row's place: equal rows must tie.
    return np.einsum("nd,d->n", unit, other)
