"""Writing a feature store, block by block, so that whatever is finished survives a kill.

Comes in: a layout, an index, and the arrays of one block at a time. Goes out: a store, its account
of refused rows, and, set aside beside it, the stores of earlier parameters.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

from askance.features.blocks import Block, plan
from askance.features.index import Index, write_index
from askance.features.store import DONE, FORMAT, NOT_YET, REFUSED, attributes
from askance.pipeline.artifacts import atomic, digest, read_json, remove, write_json
from askance.pipeline.provenance import versions

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Array:
    """The schema of one array: shape of a row, type, and shape of a row's share of a chunk."""

    row: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """What a store will hold.

    `content` is all that decides the stored numbers (backbone, preprocessing, views, ...): its
    hash, with the index's, is the store's fingerprint. `note` is recorded but decides nothing.
    """

    arrays: dict[str, Array]
    block: int
    content: dict[str, Any]
    note: dict[str, Any] = field(default_factory=dict)
    whole: dict[str, np.ndarray] = field(default_factory=dict)


class StoreWriter:
    """Writes the blocks of one store; whatever is finished survives a kill.

    A block's order is: arrays, `status`, then its record, which alone says that it is done.
    """

    def __init__(self, path: Path, layout: Layout, index: Index) -> None:
        self.path, self.layout, self.index = path, layout, index
        self.blocks = plan(len(index), layout.block)
        content = {"format": FORMAT, "index": index.digest, "block": layout.block} | layout.content
        self.content = json.loads(json.dumps(content))  # as it will be read: lists, not tuples
        self.fingerprint = digest(self.content)

    def open(self) -> str:
        """Continue, take back or create the store; return one line on what was done.

        A store with another fingerprint is set aside beside this one, never deleted; one set
        aside earlier that has the wanted fingerprint is taken back.
        """
        message = ""
        if self.path.exists():
            found = attributes(self.path)
            if found.get("fingerprint") == self.fingerprint:
                _sweep(self.path)
                return f"{self.path}: continuing" if self.missing() else f"{self.path}: complete"
            if "fingerprint" not in found:
                raise ValueError(f"expected a store, got something else at {self.path}: move it")
            aside = _aside(self.path, str(found["fingerprint"]))
            changed = _changed(found.get("content", {}), self.content)
            message = f"{self.path}: {changed} changed; the old store is set aside as {aside.name}"
            self.path.rename(aside)
        kept = _aside(self.path, self.fingerprint)
        if kept.exists():
            kept.rename(self.path)
            _sweep(self.path)
            return f"{message or self.path}; taken back {kept.name}"
        self._create()
        return message or f"{self.path}: new"

    def missing(self) -> list[Block]:
        """Return the blocks that are not done."""
        return [block for block in self.blocks if not self._record(block).exists()]

    def write(self, block: Block, arrays: Arrays, refused: dict[int, str]) -> None:
        """Write one block: `arrays` by name, (rows, ...) each; `refused` by row: the reason.

        Raises:
            ValueError: an array is missing, has another shape, or leaves the range of its type.
        """
        if set(arrays) != set(self.layout.arrays):
            raise ValueError(f"expected {sorted(self.layout.arrays)}, got {sorted(arrays)}")
        group: Any = zarr.open_group(self.path, mode="r+")
        assert not self._record(block).exists(), f"block {block.number} has two writers"
        checksums = {}
        for name, values in arrays.items():
            stored = _narrowed(name, values, self.layout.arrays[name].dtype)
            group[name][block.start : block.stop] = stored
            checksums[name] = hashlib.sha256(np.ascontiguousarray(stored).data).hexdigest()
        status = np.full(len(block.rows), DONE, np.uint8)
        status[[row - block.start for row in refused]] = REFUSED
        group["status"][block.start : block.stop] = status
        record = {
            "rows": [block.start, block.stop],
            "refused": {str(row): reason for row, reason in sorted(refused.items())},
            "sha256": checksums,
        }
        write_json(self._record(block), record)

    def finish(self) -> pa.Table:
        """Check the accounts, write `refused.parquet` and return it: row, key, shard, reason.

        Raises:
            ValueError: rows written and rows refused don't add up to a shard's rows.
        """
        assert not self.missing(), f"{len(self.missing())} blocks are not done"
        refused = {
            int(row): reason
            for block in self.blocks
            for row, reason in read_json(self._record(block))["refused"].items()
        }
        shards = self.index.table["shard"].to_pylist()
        group: Any = zarr.open_group(self.path, mode="r")
        _check_accounts(shards, group["status"][:], refused)
        table = pa.table(
            {
                "row": pa.array(list(refused), pa.int64()),
                "key": pa.array([self.index.keys[row] for row in refused], pa.string()),
                "shard": pa.array([shards[row] for row in refused], pa.string()),
                "reason": pa.array(list(refused.values()), pa.string()),
            }
        )
        with atomic(self.path / "status" / "refused.parquet") as temporary:
            pq.write_table(table, temporary)
        return table

    def _record(self, block: Block) -> Path:
        return self.path / "status" / "blocks" / f"{block.number:05}.json"

    def _create(self) -> None:
        with atomic(self.path) as temporary:
            group = zarr.create_group(temporary, zarr_format=3)
            rows = len(self.index)
            for name, array in self.layout.arrays.items():
                fill = np.nan if np.dtype(array.dtype).kind == "f" else 0
                _array(
                    group,
                    name,
                    (rows, *array.row),
                    (self.layout.block, *array.chunk),
                    array.dtype,
                    fill,
                )
            _array(group, "status", (rows,), (self.layout.block,), "uint8", NOT_YET)
            label = _array(group, "label", (rows,), (self.layout.block,), "int32", -1)
            label[:] = self.index.labels
            for name, values in self.layout.whole.items():
                _array(group, name, values.shape, values.shape, values.dtype, 0)[...] = values
            index = self.index
            write_index(temporary / "status", index.table, index.classes, index.contents)
            attributes: dict[str, Any] = {
                "format": FORMAT,
                "fingerprint": self.fingerprint,
                "content": self.content,
                "note": self.layout.note | {"versions": versions()},
            }
            group.attrs.update(attributes)


def _array(
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


def _narrowed(name: str, values: np.ndarray, dtype: str) -> np.ndarray:
    """Convert to the stored type; a value outside its range is an error, never clipped."""
    with np.errstate(over="ignore"):
        stored = values.astype(dtype)
    outside = np.isfinite(values) & ~np.isfinite(stored)
    if outside.any():
        raise ValueError(
            f"expected {name} within the range of {dtype}, got {values[outside][0]}: extract again"
            " with extract.dtype=float32"
        )
    return stored


def _check_accounts(shards: list[str], status: np.ndarray, refused: dict[int, str]) -> None:
    if set(np.flatnonzero(status == REFUSED).tolist()) != set(refused):
        raise ValueError(
            f"expected {len(refused)} rows of status refused, got"
            f" {(status == REFUSED).sum()}: the store is damaged"
        )
    rows = Counter(shards)
    done = Counter(shards[row] for row in np.flatnonzero(status != NOT_YET))
    short = [
        f"{shard} ({done[shard]} of {count})"
        for shard, count in rows.items()
        if done[shard] != count
    ]
    if short:
        raise ValueError(f"expected rows written + refused = rows of the index, got {short}")


def _aside(path: Path, fingerprint: str) -> Path:
    return path.with_name(f"{path.name}.{fingerprint[:12]}")


def _changed(old: dict[str, Any], new: dict[str, Any]) -> str:
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return ", ".join(names) or "its format"


def _sweep(path: Path) -> None:
    """Remove what a killed writer left behind: half-written chunks under temporary names."""
    for litter in path.rglob("*.partial"):
        remove(litter)
