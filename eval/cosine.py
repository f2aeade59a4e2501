"""Rows that lie anywhere, and their cosines in float64, the same bits wherever they stand."""

from collections.abc import Iterator
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Float32, Float64, Int64
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
