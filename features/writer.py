"""Writing a feature store, block by block, so that whatever is finished survives a kill.

Comes in: a layout, an index, and the arrays of one block at a time. Goes out: a store, and its
account of refused rows.

A store has one writer. Workers, however many, hand their arrays to it: no late or doubled worker
can spoil a block, and only one machine needs to reach the store.
"""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zarr

from askance.features.blocks import Block, plan
from askance.features.index import Index, write_index
from askance.features.layout import STATUS, Layout
from askance.features.opening import continue_or_begin, locked
from askance.features.store import (
    ACCOUNT,
    BLOCKS,
    DONE,
    FORMAT,
    MANIFEST,
    NOT_YET,
    REFUSALS,
    REFUSED,
    opened,
    record_of,
)
from askance.pipeline.artifacts import (
    Place,
    digest,
    listing,
    read_sealed,
    write_bytes,
    write_sealed,
)

Arrays = Mapping[str, np.ndarray]
assert STATUS.fill == NOT_YET


class StoreWriter:
    """The one writer of a store, as a context: `with StoreWriter(...) as writer`.

    A block's order is: arrays, `status`, then its record, which alone says that it is done.
    Entering continues, takes back or creates the store; `message` is one line on what was done.
    """

    def __init__(self, path: Place, layout: Layout, index: Index) -> None:
        self.path, self.layout, self.index = path, layout, index
        self.blocks = plan(len(index), layout.block)
        content = {"format": FORMAT, "index": index.digest, "block": layout.block} | layout.content
        self.content = json.loads(json.dumps(content))  # as it will be read: lists, not tuples
        self.fingerprint = digest(self.content)
        self.message = ""

    def __enter__(self) -> "StoreWriter":
        """Lock the store (on a local disk) and open it.

        A store with another fingerprint is set aside beside this one, never deleted; one set
        aside earlier that has the wanted fingerprint is taken back.

        Raises:
            ValueError: another process is writing it, or what is there can't be continued.
        """
        path = self.path
        with ExitStack() as stack:
            stack.enter_context(locked(path))
            done = continue_or_begin(path, self.fingerprint, self.content, self.create)
            self.message = done or f"{path}: {'continuing' if self.missing() else 'complete'}"
            self._lock = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def missing(self) -> list[Block]:
        """Return the blocks that are not done."""
        folder = self.path / BLOCKS
        done = {record.name for record in folder.iterdir()} if folder.exists() else set()
        return [block for block in self.blocks if self._record(block).name not in done]

    def done(self, block: Block) -> bool:
        """Say whether a block is written."""
        return self._record(block).exists()

    def refused(self, block: Block) -> dict[int, str]:
        """Return the refused rows of a finished block and why."""
        found = read_sealed(self._record(block))["refused"]
        return {int(row): why for row, why in found.items()}

    def write(self, block: Block, arrays: Arrays, refused: dict[int, str]) -> None:
        """Write one block: `arrays` by name, (rows, ...) each; `refused` by row: the reason.

        Raises:
            ValueError: an array is missing, has another shape, or leaves the range of its type.
        """
        assert not self.done(block), f"block {block.number} has two writers"
        shapes = {name: (len(block.rows), *array.row) for name, array in self.layout.arrays.items()}
        got = {name: values.shape for name, values in arrays.items()}
        if shapes != got:
            raise ValueError(f"expected arrays of {shapes}, got {got}")
        status = np.full(len(block.rows), DONE, np.uint8)
        status[[row - block.start for row in refused]] = REFUSED
        record = {
            "rows": [block.start, block.stop],
            "refused": {str(row): why for row, why in sorted(refused.items())},
            "files": self._put(block, {**arrays, "status": status}),
        }
        write_sealed(self._record(block), record)

    def _put(self, block: Block, arrays: Arrays) -> dict[str, str]:
        """Write a block's arrays, in their order; return the SHA-256 of each of their files."""
        group: Any = opened(self.path, "r+")
        files: dict[str, str] = {}
        for name, values in arrays.items():
            stored = self.layout.arrays.get(name, STATUS).narrowed(name, values)
            with zarr.config.set({"array.write_empty_chunks": True}):  # also where all are refused
                group[name][block.start : block.stop] = stored
            files |= self.layout.hashes(name, block, stored)
        return files

    def mend(self, block: Block, rows: list[int], arrays: Arrays, refused: dict[int, str]) -> None:
        """Write those of `rows` that a finished block had refused; leave all others as they are.

        Raises:
            ValueError: as in `write`.
        """
        before = self.refused(block)
        tried = {row: place for place, row in enumerate(rows) if row in before}
        there, places = np.array(list(tried), np.int64) - block.start, list(tried.values())
        whole = self._whole(block)
        for name, values in arrays.items():
            whole[name][there] = self.layout.arrays[name].narrowed(name, values[places])
        untried = {row: why for row, why in before.items() if row not in tried}
        again = {row: why for row, why in refused.items() if row in tried}
        self.forget(block)
        self.write(block, whole, untried | again)

    def forget(self, block: Block) -> None:
        """Take back that a block is done: it is missing from now on."""
        self._record(block).unlink(missing_ok=True)

    def _whole(self, block: Block) -> dict[str, np.ndarray]:
        """Return the arrays of a finished block, if they are those that were written."""
        group: Any = opened(self.path)
        files = read_sealed(self._record(block))["files"]
        arrays = {n: np.asarray(group[n][block.start : block.stop]) for n in self.layout.arrays}
        for name, values in arrays.items():
            if not self.layout.hashes(name, block, values).items() <= files.items():
                raise ValueError(
                    f"expected {name} of block {block.number} as it was written, got other bytes in"
                    f" {self.path}: run askance verify --repair"
                )
        return arrays

    def _record(self, block: Block) -> Place:
        return self.path / record_of(block.number)

    def create(self, path: Place) -> None:
        """Write an empty store, with all that is known beforehand, to `path`."""
        about = {"format": FORMAT, "fingerprint": self.fingerprint, "content": self.content}
        about |= {"made": self.layout.made}
        # The attributes first: whatever is begun says whose it is.
        group = zarr.open_group(str(path), mode="w", zarr_format=3, attributes=about)
        self.layout.create(group, self.index.labels)
        write_index(path / "status", self.index.table, self.index.classes, self.index.contents)
        names = sorted(listing(path))
        files = {name: sha256((path / name).read_bytes()).hexdigest() for name in names}
        write_sealed(path / MANIFEST, about | {"files": files})  # last: it says that all is there

    def finish(self) -> pa.Table:
        """Check the accounts, write `refused.parquet` and return it: row, key, shard, reason.

        Raises:
            ValueError: rows written and rows refused don't add up to a shard's rows.
        """
        assert not self.missing(), f"{len(self.missing())} blocks are not done"
        refused = {row: why for block in self.blocks for row, why in self.refused(block).items()}
        group: Any = opened(self.path)
        account = _account(self.index.table["shard"], group["status"][:], refused)
        table = self._table(refused)
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink)
        content = sink.getvalue().to_pybytes()
        write_bytes(self.path / REFUSALS, content)
        files = {REFUSALS: sha256(content).hexdigest()}
        write_sealed(self.path / ACCOUNT, account | {"files": files})
        return table

    def _table(self, refused: dict[int, str]) -> pa.Table:
        rows, index = pa.array(list(refused), pa.int64()), self.index.table
        reasons = pa.array(list(refused.values()), pa.string())
        named = {name: index[name].take(rows) for name in ("key", "shard")}
        return pa.table({"row": rows, **named, "reason": reasons})


def _account(
    shards: pa.ChunkedArray, status: np.ndarray, refused: dict[int, str]
) -> dict[str, Any]:
    """Return rows, written and refused in total, and [written, refused] of each shard that lost."""
    if set(np.flatnonzero(status == REFUSED).tolist()) != set(refused):
        raise ValueError(
            f"expected {len(refused)} rows of status refused, got"
            f" {(status == REFUSED).sum()}: the store is damaged"
        )
    counted = {"shard": shards, "written": status == DONE, "refused": status == REFUSED}
    by_shard = pa.table(counted).group_by("shard", use_threads=False)
    table = by_shard.aggregate([("written", "sum"), ("refused", "sum"), ("shard", "count")])
    table = table.rename_columns(["shard", "written", "refused", "rows"])
    lost = table.filter(pc.not_equal(pc.add(table["written"], table["refused"]), table["rows"]))
    if len(lost):
        short = [
            f"{x['shard']} ({x['written'] + x['refused']} of {x['rows']})" for x in lost.to_pylist()
        ]
        raise ValueError(f"expected rows written + refused = rows of the index, got {short}")
    some = table.filter(pc.greater(table["refused"], 0)).to_pylist()
    return {
        "rows": len(status),
        "written": int((status == DONE).sum()),
        "refused": len(refused),
        "shards": {x["shard"]: [x["written"], x["refused"]] for x in some},
    }
