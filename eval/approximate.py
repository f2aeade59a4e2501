"""Approximate neighbours, where comparing all pairs is hopeless: beyond ten million rows.

Comes in: embeddings, in memory or on disk. Goes out: `Approximate`, whose recall is measured, not
hoped for.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64, Int64

from askance.eval.cosine import AT_ONCE, Ids, Rows, dots, lengths, runs, take, units
from askance.eval.engines import Engine, import_faiss
from askance.eval.estimates import Estimate, wilson
from askance.eval.retrieval import NARROW, Neighbours, drawn, neighbours

NAMED = 8  # rows that the index names per query, the query itself among them
PER_LIST = 64  # rows that a list's centre is learned from
HELD = 2**27  # numbers of the queries that are held while all rows pass by


@dataclass(frozen=True)
class Approximate:
    """Neighbours that may not be the nearest, and the share that is, estimated."""

    neighbours: Neighbours
    recall: Estimate


def approximate(
    embedding: Rows,
    lists: int,
    advance: Callable[[int], None] = lambda count: None,
    *,
    queries: Ids | None = None,
    probes: int = 32,
    check: int = 1000,
    engine: Engine | None = None,
) -> Approximate:
    """Find for every query a near other row, by an inverted file of faiss in 8 bits.

    Similarities are those of `neighbours`; only a nearer row may be missed. A query that meets no
    other row in the lists is searched exactly. Rows are read in runs, all of them once for every
    2^27 numbers of the queries. It takes 1 GB for these, d + 128 bytes a row, and twice 64 rows a
    list.

    Args:
        embedding: (n, d), of all rows.
        lists: that rows are divided among, about sqrt(n).
        advance: told how many more queries are done, now and then.
        queries: the rows that search, ascending; None: all.
        probes: lists that a query looks into: more take longer and find more.
        check: queries drawn by lot that are searched exactly, too.
        engine: of the exact search; None: the fastest of this processor.

    Returns:
        Neighbours of the queries, in their order, and the share of the checked ones, with its 95 %
        interval, whose neighbour is as similar as the nearest.

    Raises:
        ValueError: no faiss, more lists than rows, fewer than two rows, or one that is not finite.
    """
    n = embedding.shape[0]
    queries = np.arange(n) if queries is None else queries
    if not len(queries):
        raise ValueError("expected queries, got none: an index is made for many")
    if not 1 <= lists <= n:
        raise ValueError(f"expected 1 to {n} lists for {n} rows, got {lists}: take about sqrt(n)")
    some = drawn(queries, check, "recall")
    exact = neighbours(embedding, queries=some, engine=engine)  # refuses what can't be searched
    index = _Index(embedding, lists, probes)
    row, similarity = np.empty(len(queries), np.int64), np.empty(len(queries))
    for places in runs(np.arange(len(queries)), max(1, HELD // max(embedding.shape[1], NARROW))):
        row[places], similarity[places] = index.best(queries[places])
        advance(len(places))
    lost = np.flatnonzero(np.isinf(similarity))
    if len(lost):
        found = neighbours(embedding, queries=queries[lost], engine=engine)
        row[lost], similarity[lost] = found.row, found.similarity
    nearest = similarity[np.searchsorted(queries, some)] == exact.similarity
    recall = Estimate(nearest.mean(), *wilson(nearest.mean(), float(len(some))))
    return Approximate(Neighbours(row, similarity), recall)


class _Index:
    """An inverted file of all rows, their numbers in 8 bits each."""

    def __init__(self, embedding: Rows, lists: int, probes: int) -> None:
        """Learn the lists from rows drawn by lot, and divide all rows among them."""
        faiss, (n, d) = import_faiss(), embedding.shape
        self.embedding, self.step = embedding, max(1, AT_ONCE // d)
        self.index = faiss.index_factory(d, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
        faiss.extract_index_ivf(self.index).nprobe = probes
        sample = take(embedding, drawn(np.arange(n), lists * PER_LIST, "lists"))
        self.index.train(units(sample, lengths(sample)))
        for some in runs(np.arange(n), self.step):
            rows = take(embedding, some)
            self.index.add(units(rows, lengths(rows)))

    def best(self, ids: Ids) -> tuple[Int64[np.ndarray, " q"], Float64[np.ndarray, " q"]]:
        """Return the best other row named for each, and its cosine; -infinity where there is none.

        What was named for all of them is read in the order of rows: never one row by itself.
        """
        held, every = take(self.embedding, ids), np.arange(len(ids))
        length = lengths(held)
        parts = (units(held[part], length[part]) for part in runs(every, self.step))
        near = np.concatenate([self.index.search(part, NAMED)[1] for part in parts])
        near.sort(axis=1)  # argmax takes the first of equals
        found, query = near.ravel(), every.repeat(NAMED)
        order = np.argsort(found, kind="stable")
        order = order[(found[order] >= 0) & (found[order] != ids[query[order]])]
        score = np.full(near.shape, -np.inf)
        for pairs in np.split(order, np.flatnonzero(np.diff(found[order] // self.step)) + 1):
            if len(pairs):
                there, place = np.unique(found[pairs], return_inverse=True)
                rows, i = take(self.embedding, there), query[pairs]
                cosine = dots(held, rows, i, place) / (length[i] * lengths(rows)[place])
                score.flat[pairs] = np.clip(cosine, -1, 1)
        best = score.argmax(axis=1)
        return near[every, best], score[every, best]
