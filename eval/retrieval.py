"""Retrieval: for every row of an embedding, the nearest other row by cosine.

Comes in: embeddings, in memory or on disk. Goes out: `Neighbours`, exact in float64 whatever the
engine, since engines (`askance.eval.engines`) only name candidates, with a proof that none lacks.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import cast

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from askance.eval.cosine import Ids, dots, lengths, runs, take, units
from askance.eval.cosine import Rows as Rows
from askance.eval.engines import Block, Engine, fastest
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
    chosen = queries if symmetric else np.union1d(queries, gallery)
    search = _Search(embedding, engine or fastest(), chosen)
    dropped, twin = search.copies(gallery)
    if len(dropped):
        gallery = np.setdiff1d(gallery, dropped, assume_unique=True)
    search.run(gallery if symmetric else queries, gallery, symmetric, _steps(len(queries), advance))
    if symmetric:
        search.row[dropped], search.similarity[dropped] = search.row[twin], search.similarity[twin]
    share = 1 - search.unsure / max(search.compared, 1)
    return Neighbours(search.row[queries], search.similarity[queries], search.scored, share)


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


@dataclass(frozen=True)
class _Held:
    """A block of rows in memory: as read, and as an engine took them."""

    ids: Ids
    raw: Float[np.ndarray, "m d"]
    engine: Engine
    block: Block


class _Search:
    """The best that is known of each row, exact."""

    def __init__(self, rows: Rows, engine: Engine, ids: Ids) -> None:
        self.rows, self.engine = rows, engine
        n, self.d = rows.shape
        self.step = max(1, PASSING // max(self.d, NARROW))
        self.norm, self.similarity = np.ones(n), np.full(n, -np.inf)
        self.row = np.full(n, -1, np.int64)
        self.compared = self.unsure = self.scored = 0
        total = np.zeros(self.d)
        for some in runs(ids, self.step):
            raw = take(rows, some)
            self.norm[some] = lengths(raw)
            with np.errstate(invalid="ignore"):  # refused below
                total += units(raw, self.norm[some]).sum(axis=0, dtype=np.float64)
        self.centre = (total / max(len(ids), 1)).astype(np.float32)
        bad = ids[~np.isfinite(self.norm[ids])]
        if len(bad):
            raise ValueError(
                f"expected finite embeddings, got NaN or infinity in {len(bad)} of {len(ids)} rows,"
                f" the first is row {bad[0]}: refuse these images when extracting"
            )

    def copies(self, ids: Ids) -> tuple[Ids, Ids]:
        """Return all copies of equal rows but the first two, and the second copy of each.

        No query needs them: two copies suffice where one of them is the query. And a further
        copy's neighbour is that of the second. Only rows of one length can be copies.
        """
        norm = np.sort(self.norm[ids])
        thrice = np.unique(norm[2:][norm[2:] == norm[:-2]])
        alike = ids[np.isin(self.norm[ids], thrice)] if len(thrice) else ids[:0]
        order, same = self.by_content(alike)  # copies stand side by side, in rising order
        third = same.copy()
        third[1:] &= same[:-1]
        second, further = np.flatnonzero(same & ~third), np.flatnonzero(third)
        twin = second[np.searchsorted(second, further) - 1]
        return alike[order[further]], alike[order[twin]]

    def by_content(self, ids: Ids) -> tuple[Ids, Bool[np.ndarray, " m"]]:
        """Sort rows by content, then number; return the order, and which equal the one before."""
        digest = np.empty((len(ids), 2), np.uint64)  # 128 bits: no two others agree by chance
        for start in range(0, len(ids), self.step):
            rows = take(self.rows, ids[start : start + self.step]) + 0.0  # no -0
            hashes = b"".join(blake2b(row.tobytes(), digest_size=16).digest() for row in rows)
            digest[start : start + self.step] = np.frombuffer(hashes, np.uint64).reshape(-1, 2)
        order = np.lexsort(digest.T)
        digest, same = digest[order], np.zeros(len(ids), np.bool_)
        same[1:] = (digest[1:] == digest[:-1]).all(axis=1)
        return order, same

    def run(
        self, queries: Ids, gallery: Ids, symmetric: bool, done: Callable[[float], None]
    ) -> None:
        """Compare all queries with the gallery; where they are the same, each pair once."""
        tile = self.engine.tile
        passing = max(1, self.step // tile) * tile
        kept = max(1, CELLS // max(self.d, NARROW) // passing) * passing
        finished, total = 0.0, len(queries) * len(gallery) / (2 if symmetric else 1)
        for start in range(0, len(queries), kept):
            rest = gallery[start + kept :] if symmetric else gallery
            for pairs in self.around(queries[start : start + kept], rest, symmetric, passing):
                finished += pairs
                done(finished / total)

    def around(self, ids: Ids, gallery: Ids, symmetric: bool, passing: int) -> Iterator[float]:
        """Compare rows that are kept with each other and all that pass; yield pairs that are done.

        A function of its own: what it keeps is let go before the next rows are loaded.
        """
        first = self.load(ids)
        if symmetric:
            for place, part in enumerate(first):
                second = replace(part, block=replace(part.block))  # what is turned for it may go
                self.compare(part, second, False)
                for other in first[:place]:
                    self.compare(other, second, True)
            yield len(ids) ** 2 / 2
        for some in runs(gallery, passing):
            for second in self.load(some):
                for part in first:
                    self.compare(part, second, symmetric)
            yield float(len(ids) * len(some))

    def load(self, ids: Ids) -> list[_Held]:
        return self.held(ids, take(self.rows, ids), self.engine)

    def held(self, ids: Ids, raw: Float[np.ndarray, "m d"], engine: Engine) -> list[_Held]:
        """Hand rows to an engine, cut as it wants them."""
        cut = [slice(start, start + engine.tile) for start in range(0, len(ids), engine.tile)]
        unit = (units(raw[part], self.norm[ids[part]]) for part in cut)
        blocks = (engine.take(some, self.centre) for some in unit)
        return [_Held(ids[p], raw[p], engine, block) for p, block in zip(cut, blocks, strict=True)]

    def compare(self, first: _Held, second: _Held, both: bool) -> None:
        """Score the pairs that may be nearest for a row of the first (or the second)."""
        if first.engine is self.engine:
            self.compared += len(first.ids) * len(second.ids)
        own = _shared(first.ids, second.ids)
        bars = self.bar(first.ids), self.bar(second.ids) if both else None
        pairs = first.engine.candidates(first.block, second.block, *bars, own)
        if pairs is None:
            self.unsure += len(first.ids) * len(second.ids)
            finer = cast(Engine, first.engine.finer)
            again = [self.held(held.ids, held.raw, finer) for held in (first, second)]
            for part in again[0]:
                for other in again[1]:
                    self.compare(part, other, both)
            return
        for start in range(0, len(pairs[0]), PAIRS):
            i, j = (side[start : start + PAIRS] for side in pairs)
            query, found = first.ids[i], second.ids[j]
            score = dots(first.raw, second.raw, i, j) / (self.norm[query] * self.norm[found])
            score = np.clip(score, -1, 1)
            score[query == found] = -np.inf
            self.scored += len(i)
            self.better(query, found, score)
            if both:
                self.better(found, query, score)

    def bar(self, ids: Ids) -> Float64[np.ndarray, " m"]:
        """Return what a row must reach to be nearer, or as near: cosines in float64 err, too."""
        return self.similarity[ids] - self.d * 2.0**-50

    def better(self, query: Ids, found: Ids, score: Float64[np.ndarray, " m"]) -> None:
        """Keep the best of what was found and what is known; of equals the smallest row."""
        order = np.lexsort((found, -score, query))
        query, found, score = query[order], found[order], score[order]
        known = self.similarity[query]
        win = (score > known) | ((score == known) & (found < self.row[query]))
        win[1:] &= query[1:] != query[:-1]
        win &= score > -np.inf
        self.row[query[win]], self.similarity[query[win]] = found[win], score[win]


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


def _steps(count: int, advance: Callable[[int], None]) -> Callable[[float], None]:
    """Return what turns the share that is done into more queries done."""
    told = 0

    def done(share: float) -> None:
        nonlocal told
        told, before = round(share * count), told
        if told > before:
            advance(told - before)

    return done
