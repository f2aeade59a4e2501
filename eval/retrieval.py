"""Retrieval: for every row of an embedding, the nearest other row by cosine.

Comes in: embeddings, (n, d) float32. Goes out: `Neighbours`, exact in float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float32, Float64, Int64

QUERIES = 4096  # searched at a time, as many as faiss takes
CANDIDATES = 8  # rows that faiss names per query, the query itself among them
CELLS = 2**22  # values held at a time, beyond the normalised copy of the embedding

Rows = Int64[np.ndarray, " q"]


@dataclass(frozen=True)
class Neighbours:
    """The nearest other row of each of n rows, and its cosine similarity, -1 to 1."""

    row: Int64[np.ndarray, " n"]
    similarity: Float64[np.ndarray, " n"]


def neighbours(
    embedding: Float32[np.ndarray, "n d"], advance: Callable[[int], None] = lambda count: None
) -> Neighbours:
    """Find the nearest other row of every row by cosine.

    The answer is that of a full comparison in float64: faiss names candidates in float32, which
    are scored again in float64. Where a row that faiss left out may be as near as the best
    candidate, within the rounding error of float32, all rows are compared. A row is never its own
    neighbour, its exact duplicates may be; of equally similar rows the first wins. A zero vector
    has similarity 0 with every row. Beyond its input it needs one normalised copy of it.

    Args:
        embedding: of the rows; their lengths don't matter.
        advance: told how many more rows are done, now and then.

    Raises:
        ValueError: fewer than two rows, a row that is not finite, or no faiss.

    Source: recall at 1 of URL (arXiv 2307.03810, section 2). The published program drops the first
        of two hits instead of the query, so that a duplicate decides by its place who is dropped.

    Example:
        >>> neighbours(np.array([[1, 0], [3, 4], [0, 2]], np.float32))
        Neighbours(row=array([1, 2, 1]), similarity=array([0.6, 0.8, 0.8]))
    """
    search = _engine()
    n, d = embedding.shape
    if n < 2:
        raise ValueError(f"expected at least two rows, got {n}: a lone row has no neighbour")
    norm = _norms(embedding)
    unit = np.empty_like(embedding)
    np.divide(embedding, norm[:, None], out=unit, casting="same_kind")
    # Twice the bound on a float32 score's error: d products and sums, and both operands' rounding.
    error = (d + 8) * 2.0**-23
    row, similarity = np.empty(n, np.int64), np.empty(n)
    for start in range(0, n, QUERIES):
        query = np.arange(start, min(start + QUERIES, n))
        score, near = search(unit[query], unit, min(CANDIDATES, n))
        near.sort(axis=1)  # argmax takes the first of equals: now the smallest row
        exact = _cosine(embedding, norm, query.repeat(near.shape[1]), near.ravel())
        exact = np.where(near == query[:, None], -np.inf, exact.reshape(near.shape))
        best = exact.argmax(axis=1)[:, None]
        row[query] = np.take_along_axis(near, best, axis=1)[:, 0]
        similarity[query] = np.take_along_axis(exact, best, axis=1)[:, 0]
        if near.shape[1] < n:  # else nothing was left out
            unsure = query[similarity[query] - error <= score[:, -1]]
            row[unsure], similarity[unsure] = _scan(embedding, norm, unit, unsure, error)
        advance(len(query))
    return Neighbours(row, similarity)


def _scan(
    embedding: Float32[np.ndarray, "n d"],
    norm: Float64[np.ndarray, " n"],
    unit: Float32[np.ndarray, "n d"],
    query: Rows,
    error: float,
) -> tuple[Rows, Float64[np.ndarray, " q"]]:
    """Compare each query with all rows: those within the error of the best again in float64."""
    row, similarity = np.empty(len(query), np.int64), np.empty(len(query))
    step = max(1, CELLS // len(unit))
    for start in range(0, len(query), step):
        some = query[start : start + step]
        score = unit[some] @ unit.T
        score[np.arange(len(some)), some] = -np.inf
        floor = score.max(axis=1) - 2 * error
        for place, scores in enumerate(score):
            near = np.flatnonzero(scores >= floor[place])
            exact = _cosine(embedding, norm, np.full_like(near, some[place]), near)
            best = exact.argmax()
            row[start + place], similarity[start + place] = near[best], exact[best]
    return row, similarity


def _cosine(
    embedding: Float32[np.ndarray, "n d"],
    norm: Float64[np.ndarray, " n"],
    first: Rows,
    second: Rows,
) -> Float64[np.ndarray, " q"]:
    similarity = _dot(embedding, first, second) / (norm[first] * norm[second])
    return np.clip(similarity, -1, 1)


def _dot(
    embedding: Float32[np.ndarray, "n d"], first: Rows, second: Rows
) -> Float64[np.ndarray, " q"]:
    """Return float64 products of pairs of rows, equal for equal rows wherever they stand.

    A matrix product would not do: its order of summation depends on the place in the matrix.
    """
    product = np.empty(len(first))
    step = max(1, CELLS // embedding.shape[1])
    for start in range(0, len(first), step):
        part = slice(start, start + step)
        pairs = np.multiply(embedding[first[part]], embedding[second[part]], dtype=np.float64)
        product[part] = pairs.sum(axis=1)
    return product


def _norms(embedding: Float32[np.ndarray, "n d"]) -> Float64[np.ndarray, " n"]:
    """Return the rows' lengths, 1 for a zero vector."""
    every = np.arange(len(embedding))
    norm = np.sqrt(_dot(embedding, every, every))
    bad = np.flatnonzero(~np.isfinite(norm))
    if len(bad):
        raise ValueError(
            f"expected finite embeddings, got NaN or infinity in {len(bad)} of {len(norm)} rows,"
            f" the first is row {bad[0]}: refuse these images when extracting"
        )
    return np.where(norm == 0, 1.0, norm)


def _engine() -> Callable[[np.ndarray, np.ndarray, int], Any]:
    """Return faiss's exact search: IndexFlatIP's kernel, without the index's copy of the rows."""
    try:
        from faiss import METRIC_INNER_PRODUCT, knn
    except ImportError as error:  # also where removing one of two faiss left an empty folder
        raise ValueError(
            "expected faiss for the neighbour search, got none: install askance[cpu], or"
            " askance[gpu] beside a CUDA GPU (one of them, never both)"
        ) from error
    return lambda query, rows, k: knn(query, rows, k, metric=METRIC_INNER_PRODUCT)
