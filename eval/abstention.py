"""Abstention: what leaving uncertain images out does to retrieval, as queries or in the gallery.

Comes in: embeddings, labels, uncertainties (larger is less certain). Goes out: which rows are kept,
and recalls with their counts.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64, Integer

from askance.eval.cosine import Rows
from askance.eval.ranks import check_finite
from askance.eval.retrieval import neighbours

Kept = Bool[np.ndarray, " n"]


@dataclass(frozen=True)
class Recall:
    """How many queries find an image of their class nearest to them in a gallery.

    `hopeless` queries have no other image of their class there: they can only miss, and count.
    """

    queries: int
    gallery: int
    hits: int
    hopeless: int

    @property
    def value(self) -> float:
        """Recall at 1, 0 to 1; NaN without a query."""
        return self.hits / self.queries if self.queries else math.nan

    @property
    def reason(self) -> str:
        """Why there is no recall, or what lowers it; "" where all is well."""
        if not self.queries:
            return "no query"
        if self.hopeless:
            return (
                f"{self.hopeless} of {self.queries} queries have no other image of their class in"
                " the gallery"
            )
        return ""


def kept(uncertainty: Float[np.ndarray, " n"], share: float) -> Kept:
    """Tell which rows are at most as uncertain as the quantile at `share`: the safe ones.

    Of n distinct values these are the 1 + floor((n - 1) share) smallest; ties with the last of them
    are kept, so that more than `share` may be.

    Raises:
        ValueError: an uncertainty is NaN or infinite; a share outside 0 to 1.

    Example:
        >>> kept(np.array([0.4, 0.1, 0.9, 0.2, 0.3]), 0.5)
        array([False,  True, False,  True,  True])
    """
    return kept_per_class(uncertainty, np.zeros(len(uncertainty), np.int64), share)


def kept_per_class(
    uncertainty: Float[np.ndarray, " n"], label: Integer[np.ndarray, " n"], share: float
) -> Kept:
    """Tell which rows are `kept` within their class: as many of every class, however hard it is.

    A tool to look at labelled data: at use labels are not known. No class vanishes.

    Raises:
        ValueError: an uncertainty is NaN or infinite; a share outside 0 to 1.

    Source: "safe retrieval" in the program of PVU (arXiv 2402.16569), with a share of 0.9.

    Example:
        >>> kept_per_class(np.array([0.4, 0.1, 0.9, 0.8]), np.array([0, 0, 1, 1]), 0.9)
        array([False,  True, False,  True])
    """
    if not 0 <= share <= 1:
        raise ValueError(f"expected a share to keep from 0 to 1, got {share}")
    check_finite(uncertainty)
    _, of, count = np.unique(label, return_inverse=True, return_counts=True)
    last = count.cumsum() - count + np.floor((count - 1) * share).astype(int)
    threshold = uncertainty[np.lexsort((uncertainty, of))[last]]
    return uncertainty <= threshold[of]


def safe_retrieval(
    embedding: Rows,
    label: Integer[np.ndarray, " n"],
    nearest: Int64[np.ndarray, " n"],
    safe: Kept,
) -> dict[str, Recall]:
    """Return recall at 1 with all or only safe rows, as queries and in the gallery.

    A query never finds itself, whether or not it is in the gallery. Only queries whose neighbour
    is not safe search again.

    Args:
        embedding: (n, d), of all rows.
        label: of all rows.
        nearest: the nearest other row of every row among all, as `neighbours` gives them.
        safe: which rows to keep, from `kept` or `kept_per_class`.

    Returns:
        Four recalls, by name: "full", "safe gallery", "safe gallery and queries", "safe queries".

    Raises:
        ValueError: a safe row without any other, or no safe row.

    Source: the program of PVU (arXiv 2402.16569), where it is commented out; there a query is left
        out of the gallery by its place among the queries, which is wrong once they are a subset.

    Example:
        >>> embedding = np.array([[4, 0], [4, 1], [0, 4], [1, 4], [3, 2]], np.float32)
        >>> label, safe = np.array([0, 0, 1, 1, 1]), np.array([True, True, True, True, False])
        >>> nearest = neighbours(embedding).row
        >>> found = safe_retrieval(embedding, label, nearest, safe)
        >>> {name: recall.value for name, recall in found.items()}
        {'full': 0.8, 'safe gallery': 0.8, 'safe gallery and queries': 1.0, 'safe queries': 1.0}
    """
    if not safe.any():
        raise ValueError("expected at least one safe row, got none: keep more")
    again = np.flatnonzero(~safe[nearest])
    among_safe = nearest.copy()
    if len(again):
        gallery = np.flatnonzero(safe)
        among_safe[again] = neighbours(embedding, queries=again, gallery=gallery).row
    every = np.ones_like(safe)
    return {
        "full": _recall(label, nearest, every, every),
        "safe gallery": _recall(label, among_safe, every, safe),
        "safe gallery and queries": _recall(label, among_safe, safe, safe),
        "safe queries": _recall(label, nearest, safe, every),
    }


def curve(
    embedding: Rows,
    label: Integer[np.ndarray, " n"],
    uncertainty: Float[np.ndarray, " n"],
    shares: Sequence[float],
) -> list[dict[str, object]]:
    """Return `safe_retrieval` for several shares kept, as rows of a table.

    Raises:
        ValueError: an uncertainty is NaN or infinite; a share outside 0 to 1, or so small that a
            row has no other.
    """
    nearest = neighbours(embedding).row
    return [
        {"share": share, "case": case, "recall": recall.value, **vars(recall)}
        for share in shares
        for case, recall in safe_retrieval(
            embedding, label, nearest, kept(uncertainty, share)
        ).items()
    ]


def _recall(
    label: Integer[np.ndarray, " n"], row: Int64[np.ndarray, " n"], queries: Kept, gallery: Kept
) -> Recall:
    classes, of = np.unique(label, return_inverse=True)
    others = np.bincount(of[gallery], minlength=len(classes))[of] - gallery
    return Recall(
        queries=int(queries.sum()),
        gallery=int(gallery.sum()),
        hits=int((label[row] == label)[queries].sum()),
        hopeless=int((others == 0)[queries].sum()),
    )
