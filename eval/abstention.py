"""Abstention: what leaving uncertain images out does to retrieval, as queries or in the gallery.

Comes in: embeddings, labels, uncertainties (larger is less certain), neighbours among all. Goes
out: which rows are kept, and recalls with their counts.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int64, Integer

from askance.eval.cosine import Ids, Rows
from askance.eval.ranks import check_finite
from askance.eval.retrieval import neighbours

Kept = Bool[np.ndarray, " n"]
SHARES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)  # falling: what is kept is among what was
PER_CLASS = 0.9  # as published


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

    Source: "safe retrieval" in the program of PVU (arXiv 2402.16569), with `PER_CLASS`.

    Example:
        >>> kept_per_class(np.array([0.4, 0.1, 0.9, 0.8]), np.array([0, 0, 1, 1]), 0.9)
        array([False,  True, False,  True])
    """
    if not 0 <= share <= 1:
        raise ValueError(f"expected a share to keep from 0 to 1, got {share}")
    check_finite(uncertainty)
    _, of, count = np.unique(label, return_inverse=True, return_counts=True)
    last = count.cumsum() - count + np.floor((count - 1) * share + 1e-9).astype(int)
    threshold = uncertainty[np.lexsort((uncertainty, of))[last]]
    return uncertainty <= threshold[of]


def nearest_safe(
    embedding: Rows, queries: Ids, nearest: Int64[np.ndarray, " q"], safe: Kept
) -> Int64[np.ndarray, " q"]:
    """Return each query's nearest other safe row; only queries whose neighbour isn't search again.

    Args:
        embedding: (n, d), of all rows.
        queries: rows, ascending; safe or not. A query never finds itself.
        nearest: each query's nearest other row among all, or among any that include the safe ones.
        safe: which rows to search, from `kept` or `kept_per_class`.

    Returns:
        Rows; of a lone safe row itself, which has no other to find.

    Raises:
        ValueError: no row is safe.
    """
    again, gallery = np.flatnonzero(~safe[nearest]), np.flatnonzero(safe)
    if not len(gallery):
        raise ValueError("expected at least one safe row, got none: keep more")
    if len(gallery) == 1:
        return np.full_like(nearest, gallery[0])
    found = nearest.copy()
    if len(again):
        found[again] = neighbours(embedding, queries=queries[again], gallery=gallery).row
    return found


def safe_retrieval(
    label: Integer[np.ndarray, " n"],
    queries: Ids,
    nearest: Int64[np.ndarray, " q"],
    among_safe: Int64[np.ndarray, " q"],
    safe: Kept,
) -> dict[str, Recall]:
    """Return recall at 1 with all or only safe rows, as queries and in the gallery.

    Args:
        label: of all rows.
        queries: rows, ascending.
        nearest: each query's nearest other row among all, as `neighbours` gives them.
        among_safe: each query's nearest other safe row, from `nearest_safe`.
        safe: which rows are.

    Returns:
        Four recalls, by name: "full", "safe gallery", "safe gallery and queries", "safe queries".

    Source: the program of PVU (arXiv 2402.16569), where it is commented out; there a query is left
        out of the gallery by its place among the queries, which is wrong once they are a subset.

    Example:
        >>> embedding = np.array([[4, 0], [4, 1], [0, 4], [1, 4], [3, 2]], np.float32)
        >>> label, safe = np.array([0, 0, 1, 1, 1]), np.array([True, True, True, True, False])
        >>> queries, nearest = np.arange(5), neighbours(embedding).row
        >>> among_safe = nearest_safe(embedding, queries, nearest, safe)
        >>> found = safe_retrieval(label, queries, nearest, among_safe, safe)
        >>> {name: recall.value for name, recall in found.items()}
        {'full': 0.8, 'safe gallery': 0.8, 'safe gallery and queries': 1.0, 'safe queries': 1.0}
    """
    every, everyone, certain = np.ones_like(safe), np.ones(len(queries), bool), safe[queries]
    return {
        "full": _recall(label, queries, nearest, everyone, every),
        "safe gallery": _recall(label, queries, among_safe, everyone, safe),
        "safe gallery and queries": _recall(label, queries, among_safe, certain, safe),
        "safe queries": _recall(label, queries, nearest, certain, every),
    }


def curve(
    embedding: Rows,
    label: Integer[np.ndarray, " n"],
    uncertainty: Float[np.ndarray, " n"],
    queries: Ids,
    nearest: Int64[np.ndarray, " q"],
) -> list[dict[str, object]]:
    """Return `safe_retrieval` for all `SHARES`, and for `PER_CLASS` of each class, as a table.

    Args:
        embedding: (n, d), of all rows.
        label: of all rows.
        uncertainty: of all rows: the gallery is kept by it, too.
        queries: rows, ascending.
        nearest: each query's nearest other row among all.

    Returns:
        Rows with the rule ("global" or "per class"), the share to keep, the share kept (ties keep
        more), the case, and its recall, counts and reason.

    Raises:
        ValueError: an uncertainty is NaN or infinite.
    """
    rows, found = [], nearest
    for keep in SHARES:
        safe = kept(uncertainty, keep)
        found = nearest_safe(embedding, queries, found, safe)
        recalls = safe_retrieval(label, queries, nearest, found, safe)
        rows += _rows("global", keep, safe, recalls)
    safe = kept_per_class(uncertainty, label, PER_CLASS)
    found = nearest_safe(embedding, queries, nearest, safe)
    recalls = safe_retrieval(label, queries, nearest, found, safe)
    return rows + _rows("per class", PER_CLASS, safe, recalls)


def _rows(
    rule: str, keep: float, safe: Kept, recalls: dict[str, Recall]
) -> list[dict[str, object]]:
    about = {"rule": rule, "keep": keep, "share": float(safe.mean())}
    return [
        about
        | {"case": case, "recall": recall.value, "queries": recall.queries}
        | {"gallery": recall.gallery, "hopeless": recall.hopeless, "reason": recall.reason}
        for case, recall in recalls.items()
    ]


def _recall(
    label: Integer[np.ndarray, " n"],
    queries: Ids,
    found: Int64[np.ndarray, " q"],
    asked: Bool[np.ndarray, " q"],
    gallery: Kept,
) -> Recall:
    classes, of = np.unique(label, return_inverse=True)
    others = np.bincount(of[gallery], minlength=len(classes))[of[queries]] - gallery[queries]
    hit = (label[found] == label[queries]) & (others > 0)  # a lone row finds itself
    return Recall(
        queries=int(asked.sum()),
        gallery=int(gallery.sum()),
        hits=int(hit[asked].sum()),
        hopeless=int((others == 0)[asked].sum()),
    )
