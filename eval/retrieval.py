"""Retrieval: for every row of an embedding, the nearest other row by cosine.

Comes in: embeddings, in memory or on disk. Goes out: `Neighbours`, exact in float64 whatever the
engine, since engines (`askance.eval.engines`) only name candidates, with a proof that none lacks.

A first pass measures the rows. Then some queries are kept in memory while the gallery passes by,
block against block (`_Search`). The engine names the pairs that may be nearer than what is known,
these alone are scored in float64, and the nearest of each row is remembered (`_Best`).
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from typing import cast

import numpy as np
from jaxtyping import Float, Float64, Int64

from askance.eval.cosine import Ids, Vectors, dots, runs, take, units
from askance.eval.cosine import Rows as Rows
from askance.eval.engines import Block, Engine, Pairs, fastest
from askance.pipeline.seeding import generator

CELLS = 12 * 2**20  # numbers of the rows that are kept while all others pass by
PASSING = 2**21  # numbers of the rows passing by
NARROW = 256  # rows of fewer numbers take as much, what is kept beside the numbers being more
PAIRS = 2**18  # scored in float64 at a time


@dataclass(frozen=True)
class Neighbours:
    """The nearest other row of each query, and its cosine similarity, -1 to 1."""

    row: Int64[np.ndarray, " q"]
    similarity: Float64[np.ndarray, " q"]
    scored: int = field(default=0, repr=False)  # pairs scored in float64
    certified: float = field(default=1.0, repr=False)  # share of the pairs needing no finer engine


def neighbours(
    embedding: Rows,
    advance: Callable[[int], None] = lambda count: None,
    *,
    queries: Ids | None = None,
    gallery: Ids | None = None,
    engine: Engine | None = None,
) -> Neighbours:
    """Find for every query the nearest other row of the gallery by cosine.

    The answer is that of a full comparison in float64, to the bit and with every engine. A row is
    never its own neighbour, its exact duplicates may be; of equally similar rows the first wins.
    A zero vector has similarity 0 with every row.

    Rows are read in runs, several times over. Beyond its input it takes less than 150 MB, and 128
    bytes a row, its answer included.

    Args:
        embedding: (n, d), of all rows, float16 to float64; their lengths don't matter.
        advance: told how many more queries are done, now and then.
        queries: the rows that search, ascending; None: all.
        gallery: the rows that are searched, ascending; None: all. Where both are the same rows,
            each pair is compared once for both.
        engine: what compares; None: the fastest of this processor.

    Returns:
        Neighbours of the queries, in their order.

    Raises:
        ValueError: a query without any other row, rows that are not ascending or not there, or a
            row that is not finite.

    Source: recall at 1 of URL (arXiv 2307.03810, section 2). The published program drops the first
        of two hits instead of the query, so that a duplicate decides by its place who is dropped.

    Example:
        >>> neighbours(np.array([[1, 0], [3, 4], [0, 2]], np.float32))
        Neighbours(row=array([1, 2, 1]), similarity=array([0.6, 0.8, 0.8]))
    """
    n = embedding.shape[0]
    queries, gallery = _chosen(queries, n, "queries"), _chosen(gallery, n, "gallery")
    symmetric = np.array_equal(queries, gallery)
    if len(gallery) < 1 + (symmetric or np.isin(queries, gallery).any()):
        raise ValueError(
            f"expected at least two rows, got {len(gallery)}: a lone row has no neighbour"
        )
    step = max(1, PASSING // max(embedding.shape[1], NARROW))
    rows = Vectors(embedding, queries if symmetric else np.union1d(queries, gallery), step)
    further, twin = rows.copies(gallery)
    searched = np.setdiff1d(gallery, further, assume_unique=True)
    search = _Search(rows, engine or fastest())
    shares = search.run(searched if symmetric else queries, searched, symmetric)
    _advance(advance, len(queries), shares)
    best = search.best
    if symmetric:
        best.row[further], best.similarity[further] = best.row[twin], best.similarity[twin]
    certified = 1 - search.unsure / max(search.compared, 1)
    return Neighbours(best.row[queries], best.similarity[queries], search.scored, certified)


def drawn(rows: Ids, count: int, *names: str | int) -> Ids:
    """Draw queries by lot, without replacement: R@1 of all is estimated where all are too many.

    Args:
        rows: to draw from.
        count: how many; all where there are fewer.
        names: the draw depends on these alone, and on how many rows there are.

    Returns:
        The queries, ascending.
    """
    some = generator("queries", *names).choice(len(rows), min(count, len(rows)), replace=False)
    return np.sort(rows[some])


class _Best:
    """Of each of n rows the nearest other one that is known; at first none, at -infinity."""

    def __init__(self, n: int, d: int) -> None:
        self.row, self.similarity = np.full(n, -1, np.int64), np.full(n, -np.inf)
        self.error = d * 2.0**-50  # of a cosine in float64

    def bar(self, ids: Ids) -> Float64[np.ndarray, " m"]:
        """Return what the true cosine of another row must reach to be nearer, or as near."""
        return self.similarity[ids] - self.error

    def offer(self, query: Ids, found: Ids, cosine: Float64[np.ndarray, " m"]) -> None:
        """Keep the best of what was found and what is known; of equals the smallest row."""
        order = np.lexsort((found, -cosine, query))
        query, found, cosine = query[order], found[order], cosine[order]
        known = self.similarity[query]
        win = (cosine > known) | ((cosine == known) & (found < self.row[query]))
        win[1:] &= query[1:] != query[:-1]
        win &= cosine > -np.inf
        self.row[query[win]], self.similarity[query[win]] = found[win], cosine[win]


@dataclass(frozen=True)
class _Held:
    """A block of rows in memory: as read, and as an engine took them."""

    ids: Ids
    raw: Float[np.ndarray, "m d"]
    engine: Engine
    block: Block


class _Search:
    """Compares blocks of queries with blocks of the gallery, for the `best` of each row."""

    def __init__(self, rows: Vectors, engine: Engine) -> None:
        self.rows, self.engine, self.best = rows, engine, _Best(len(rows.length), rows.d)
        self.compared = self.unsure = self.scored = 0  # pairs

    def run(self, queries: Ids, gallery: Ids, symmetric: bool) -> Iterator[float]:
        """Compare all queries with the gallery; yield the share of the pairs that is done.

        Where both are the same rows (symmetric), queries that are kept meet each other and the
        rows behind them alone: each pair is compared once, for both.
        """
        tile = self.engine.tile
        passing = max(1, self.rows.step // tile) * tile
        kept = max(1, CELLS // max(self.rows.d, NARROW) // passing) * passing
        done, total = 0.0, len(queries) * len(gallery) / (2 if symmetric else 1)
        for start in range(0, len(queries), kept):
            rest = gallery[start + kept :] if symmetric else gallery
            for pairs in self._around(queries[start : start + kept], rest, symmetric, passing):
                done += pairs
                yield done / total

    def _around(self, ids: Ids, gallery: Ids, symmetric: bool, passing: int) -> Iterator[float]:
        """Keep some queries while the gallery passes by; yield pairs that are done.

        A function of its own: what it keeps is let go before the next queries are loaded.
        """
        kept = self._load(ids)
        if symmetric:
            self._among(kept)
            yield len(ids) ** 2 / 2
        for some in runs(gallery, passing):
            for second in self._load(some):
                for first in kept:
                    self._meet(first, second, symmetric)
            yield float(len(ids) * len(some))

    def _among(self, kept: list[_Held]) -> None:
        """Compare rows that are kept with each other."""
        for place, part in enumerate(kept):
            second = replace(part, block=replace(part.block))  # what is turned for it may go
            self._meet(part, second, False)
            for first in kept[:place]:
                self._meet(first, second, True)

    def _meet(self, first: _Held, second: _Held, both: bool) -> None:
        """Score the pairs that may be nearest for a row of the first block, or of both."""
        count = len(first.ids) * len(second.ids)
        if first.engine is self.engine:
            self.compared += count
        bars = self.best.bar(first.ids), self.best.bar(second.ids) if both else None
        own = _shared(first.ids, second.ids)
        pairs = first.engine.candidates(first.block, second.block, *bars, own)
        if pairs is not None:
            self._score(first, second, pairs, both)
            return
        self.unsure += count
        finer = cast(Engine, first.engine.finer)
        again = [self._taken(held.ids, held.raw, finer) for held in (first, second)]
        for part, other in product(*again):
            self._meet(part, other, both)

    def _score(self, first: _Held, second: _Held, pairs: Pairs, both: bool) -> None:
        """Score pairs in float64, and offer them to the rows of the first block, or of both."""
        length = self.rows.length
        for i, j in zip(*(runs(side, PAIRS) for side in pairs), strict=True):
            query, found = first.ids[i], second.ids[j]
            cosine = dots(first.raw, second.raw, i, j) / (length[query] * length[found])
            cosine = np.clip(cosine, -1, 1)
            cosine[query == found] = -np.inf
            self.scored += len(i)
            self.best.offer(query, found, cosine)
            if both:
                self.best.offer(found, query, cosine)

    def _load(self, ids: Ids) -> list[_Held]:
        return self._taken(ids, take(self.rows.rows, ids), self.engine)

    def _taken(self, ids: Ids, raw: Float[np.ndarray, "m d"], engine: Engine) -> list[_Held]:
        """Hand rows to an engine, cut as it wants them."""
        cut = [slice(start, start + engine.tile) for start in range(0, len(ids), engine.tile)]
        unit = (units(raw[part], self.rows.length[ids[part]]) for part in cut)
        blocks = (engine.take(some, self.rows.centre) for some in unit)
        return [_Held(ids[p], raw[p], engine, block) for p, block in zip(cut, blocks, strict=True)]


def _shared(first: Ids, second: Ids) -> tuple[Ids, Ids]:
    """Return the places of the ids that both have."""
    if first[-1] < second[0] or second[-1] < first[0]:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return np.intersect1d(first, second, assume_unique=True, return_indices=True)[1:]


def _chosen(rows: Ids | None, n: int, name: str) -> Ids:
    if rows is None:
        return np.arange(n)
    wrong = np.flatnonzero((rows < 0) | (rows >= n) | (np.diff(rows, prepend=-1) <= 0))
    if len(wrong):
        raise ValueError(
            f"expected {name} ascending from 0 to {n - 1}, each once, got {rows[wrong[0]]} at place"
            f" {wrong[0]}: sort them, or leave it out"
        )
    return rows


def _advance(advance: Callable[[int], None], count: int, shares: Iterable[float]) -> None:
    """Go through the shares of `count` that are done, and tell how many more each makes."""
    told = 0
    for share in shares:
        told, before = round(share * count), told
        if told > before:
            advance(told - before)
