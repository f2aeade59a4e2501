"""Approximate neighbours, where comparing all pairs is hopeless: beyond ten million rows.

Comes in: embeddings. Goes out: `Approximate`, whose recall is measured, not hoped for.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32

from askance.eval.cosine import cosine
from askance.eval.engines import import_faiss
from askance.eval.retrieval import Neighbours, drawn, neighbours

NAMED = 8  # rows that the index names per query, the query itself among them
PER_LIST = 64  # rows that a list's centre is learned from
AT_A_TIME = 2**12  # rows


@dataclass(frozen=True)
class Approximate:
    """Neighbours that may not be the nearest; of so many checked, so many are."""

    neighbours: Neighbours
    checked: int
    nearest: int


def approximate(
    embedding: Float[np.ndarray, "n d"], lists: int, probes: int, check: int = 1000
) -> Approximate:
    """Find for every row a near other row, by an inverted file of faiss in 8 bits.

    Similarities are those of `neighbours`; only a nearer row may be missed. It takes d bytes a
    row for the index, 16 for the answer, and reads rows at random.

    Args:
        embedding: of finite rows, in memory or a memory map.
        lists: that rows are divided among, about sqrt(n).
        probes: lists that a query looks into: more take longer and find more.
        check: queries drawn by lot that are searched exactly, too.

    Returns:
        Neighbours, row -1 and similarity NaN where the lists hold no other row. Among the checked,
        what is as similar as the nearest is a nearest.

    Raises:
        ValueError: no faiss, fewer than two rows, or a row that is not finite.
    """
    n, d = embedding.shape
    faiss, every = import_faiss(), np.arange(n)
    some = drawn(every, check, "recall")
    exact = neighbours(embedding, queries=some)  # first: it refuses what can't be searched
    index = faiss.index_factory(d, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    faiss.extract_index_ivf(index).nprobe = probes
    index.train(_unit(embedding[drawn(every, lists * PER_LIST, "lists")]))
    for part in _parts(n):
        index.add(_unit(embedding[part]))
    row, similarity = np.empty(n, np.int64), np.empty(n)
    for part in _parts(n):
        _, near = index.search(_unit(embedding[part]), NAMED)
        near.sort(axis=1)  # argmax takes the first of equals: now the smallest row
        query = every[part].repeat(NAMED)
        score = cosine(embedding[query], embedding[near.ravel()])
        score[(near.ravel() == query) | (near.ravel() < 0)] = -np.inf
        best = score.reshape(near.shape).argmax(axis=1)[:, None]
        row[part] = np.take_along_axis(near, best, axis=1)[:, 0]
        similarity[part] = np.take_along_axis(score.reshape(near.shape), best, axis=1)[:, 0]
    lost = np.isinf(similarity)
    row[lost], similarity[lost] = -1, np.nan
    nearest = int((similarity[some] == exact.similarity).sum())
    return Approximate(Neighbours(row, similarity), len(some), nearest)


def _unit(rows: Float[np.ndarray, "m d"]) -> Float32[np.ndarray, "m d"]:
    length = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    return (rows / np.where(length == 0, 1, length)).astype(np.float32)


def _parts(n: int) -> Iterator[slice]:
    for start in range(0, n, AT_A_TIME):
        yield slice(start, min(start + AT_A_TIME, n))
