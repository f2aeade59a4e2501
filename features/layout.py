"""The layout of a feature store: its arrays, their chunks, and the bytes that a block will be.

Format askance-features/1: a Zarr v3 group; chunks are whole blocks of rows, nothing is compressed.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr

from askance.features.blocks import Block


@dataclass(frozen=True)
class Array:
    """The schema of one array: shape of a row, type, and shape of a row's share of a chunk."""

    row: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...]

    @property
    def fill(self) -> float | int:
        return np.nan if np.dtype(self.dtype).kind == "f" else 0

    def narrowed(self, name: str, values: np.ndarray) -> np.ndarray:
        """Convert to the stored type.

        Raises:
            ValueError: a value is outside its range: nothing is ever clipped.
        """
        with np.errstate(over="ignore"):
            stored = values.astype(self.dtype)
        outside = np.isfinite(values) & ~np.isfinite(stored)
        if outside.any():
            raise ValueError(
                f"expected {name} within the range of {self.dtype}, got {values[outside][0]}:"
                " extract again with extract.dtype=float32"
            )
        return stored


STATUS = Array((), "uint8", ())


@dataclass(frozen=True)
class Layout:
    """What a store will hold.

    `content` is all that decides the stored numbers (backbone, preprocessing, views, ...): its
    hash, with the index's, is the store's fingerprint. `made` is recorded but decides nothing:
    where data and weights were, versions. `known` arrays (n, ...) and `whole` ones (of any shape)
    are written at the start.
    """

    arrays: dict[str, Array]
    block: int
    content: dict[str, Any]
    made: dict[str, Any] = field(default_factory=dict)
    known: dict[str, np.ndarray] = field(default_factory=dict)
    whole: dict[str, np.ndarray] = field(default_factory=dict)

    def create(self, group: zarr.Group, label: np.ndarray) -> None:
        """Create all arrays in a group and write those that are known; `label` has all rows."""
        for name, array in (self.arrays | {"status": STATUS}).items():
            shape, chunk = (len(label), *array.row), (self.block, *array.chunk)
            _create(group, name, shape, chunk, array.dtype, array.fill)
        for name, values in ({"label": label} | self.known).items():
            chunk = (self.block, *values.shape[1:])
            _create(group, name, values.shape, chunk, values.dtype, 0)[...] = values
        for name, values in self.whole.items():
            _create(group, name, values.shape, values.shape, values.dtype, 0)[...] = values

    def hashes(self, name: str, block: Block, values: np.ndarray) -> dict[str, str]:
        """Return the SHA-256 of each file of a block's array, from what is to be written there."""
        array = self.arrays.get(name, STATUS)
        whole = np.full((self.block, *array.row), array.fill, array.dtype)
        whole[: len(values)] = values
        counts = [-(-side // part) for side, part in zip(array.row, array.chunk, strict=True)]
        found = {}
        for place in np.ndindex(*counts):
            starts = [(n * part, part) for n, part in zip(place, array.chunk, strict=True)]
            part = tuple(slice(start, start + length) for start, length in starts)
            chunk = np.ascontiguousarray(whole[(slice(None), *part)])
            file = "/".join(map(str, (name, "c", block.number, *place)))
            found[file] = hashlib.sha256(chunk.data).hexdigest()
        return found


def _create(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    chunk: tuple[int, ...],
    dtype: np.dtype[Any] | str,
    fill: float | int,
) -> zarr.Array[Any]:
    """Create an array without compressor (it would cost more than it saves), every chunk a file."""
    return group.create_array(
        name,
        shape=shape,
        chunks=chunk,
        dtype=dtype,
        fill_value=fill,
        compressors=None,
        config={"write_empty_chunks": True},
    )
