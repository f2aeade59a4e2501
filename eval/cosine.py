"""Rows that lie anywhere, and their cosines in float64, the same bits wherever they stand."""

from collections.abc import Iterator
from hashlib import blake2b
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64
from numpy.typing import ArrayLike

Ids = Int64[np.ndarray, "..."]  # rows, ascending
AT_ONCE = 2**21  # numbers read at once where rows lie apart
CACHED = 2**17  # numbers that stay in the processor's caches


@runtime_checkable
class Rows(Protocol):
    """Embeddings that lie anywhere: a NumPy array, a memory map, an array of Zarr."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The number of rows, and of values of each."""

    def __getitem__(self, rows: slice, /) -> ArrayLike:
        """Read a run of rows, float16, float32 or float64."""


def take(rows: Rows, ids: Ids) -> Float[np.ndarray, "m d"]:
    """Read rows in runs of bounded length, as few as there can be."""
    if ids[-1] - ids[0] + 1 == len(ids):
        return _moderate(np.asarray(rows[ids[0] : ids[-1] + 1]))
    step = max(1, AT_ONCE // rows.shape[1])
    cut = np.flatnonzero(np.diff(ids // step)) + 1
    read = [np.asarray(rows[some[0] : some[-1] + 1])[some - some[0]] for some in np.split(ids, cut)]
    return _moderate(np.concatenate(read))


def _moderate(rows: Float[np.ndarray, "m d"]) -> Float[np.ndarray, "m d"]:
    """Scale float64 rows by powers of two, which rounds nothing: squares stay within the range."""
    if rows.dtype != np.float64:
        return rows
    exponent = np.frexp(abs(rows).max(axis=1, initial=0))[1]
    return np.ldexp(rows, -exponent[:, None])


def lengths(rows: Float[np.ndarray, "m d"]) -> Float64[np.ndarray, " m"]:
    """Return the rows' lengths, 1 for a zero vector, so that its cosines are 0."""
    every = np.arange(len(rows))
    length = np.sqrt(dots(rows, rows, every, every))
    return np.where(length == 0, 1.0, length)


def units(
    rows: Float[np.ndarray, "m d"], length: Float64[np.ndarray, " m"]
) -> Float32[np.ndarray, "m d"]:
    """Divide rows by their lengths in float64: these may be too long or short for float32."""
    out = np.empty(rows.shape, np.float32)
    return np.divide(rows, length[:, None], out=out, casting="same_kind")


def dots(
    first: Float[np.ndarray, "a d"], second: Float[np.ndarray, "b d"], i: Ids, j: Ids
) -> Float64[np.ndarray, " p"]:
    """Return float64 products of pairs of rows, equal for equal rows wherever they stand.

    A matrix product would not do: its order of summation depends on the place in the matrix.
    """
    product = np.empty(len(i))
    step = max(1, CACHED // first.shape[1])
    for start in range(0, len(i), step):
        part = slice(start, start + step)
        pairs = np.multiply(first[i[part]], second[j[part]], dtype=np.float64)
        product[part] = pairs.sum(axis=1)
    return product


def runs(ids: Ids, size: int) -> Iterator[Ids]:
    """Cut rows into runs of a size; the last may be shorter."""
    for start in range(0, len(ids), size):
        yield ids[start : start + size]


class Vectors:
    """Rows as vectors: the `length` of some of them, and their mean direction, the `centre`."""

    def __init__(self, rows: Rows, ids: Ids, step: int) -> None:
        """Measure some rows in one pass, `step` at a time.

        Raises:
            ValueError: one of them is not finite.
        """
        self.rows, self.step, (n, self.d) = rows, step, rows.shape
        self.length, total = np.ones(n), np.zeros(self.d)
        for some in runs(ids, self.step):
            raw = take(rows, some)
            self.length[some] = lengths(raw)
            with np.errstate(invalid="ignore"):  # refused below
                total += units(raw, self.length[some]).sum(axis=0, dtype=np.float64)
        self.centre = (total / max(len(ids), 1)).astype(np.float32)
        bad = ids[~np.isfinite(self.length[ids])]
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
        length = np.sort(self.length[ids])
        thrice = np.unique(length[2:][length[2:] == length[:-2]])
        alike = ids[np.isin(self.length[ids], thrice)] if len(thrice) else ids[:0]
        order, same = self._by_content(alike)  # copies stand side by side, in rising order
        third = same.copy()
        third[1:] &= same[:-1]
        second, further = np.flatnonzero(same & ~third), np.flatnonzero(third)
        twin = second[np.searchsorted(second, further) - 1]
        return alike[order[further]], alike[order[twin]]

    def _by_content(self, ids: Ids) -> tuple[Ids, Bool[np.ndarray, " m"]]:
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
