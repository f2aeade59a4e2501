"""Blocks: runs of rows that fill whole chunks, the unit of work, writing, resuming and checking.

Blocks know nothing of the borders of shards. A task is a block with the samples of its rows, which
say where every image lies: all that a worker needs besides the backbone.
"""

import os
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from askance.features.index import Index


@dataclass(frozen=True)
class Block:
    """Rows `start` to `stop` (exclusive) of a store."""

    number: int
    start: int
    stop: int

    @property
    def rows(self) -> range:
        return range(self.start, self.stop)


@dataclass(frozen=True)
class Task:
    """The samples of a block to embed: all of them, or some whole batches of them.

    `samples` has the columns row (of the store), key, shard (an absolute path or a URL), offset,
    size and label.
    """

    block: Block
    samples: pa.Table


def plan(rows: int, block: int) -> list[Block]:
    """Cut `rows` rows into blocks of `block` rows; the last may be shorter."""
    return [
        Block(number, start, min(start + block, rows))
        for number, start in enumerate(range(0, rows, block))
    ]


def task(index: Index, block: Block) -> Task:
    """Return the whole of a block as a task."""
    # Not a slice, which would be sent to a worker with all the rows around it.
    table = index.table.take(pa.array(block.rows))
    shards = [index.location(shard) for shard in table["shard"].to_pylist()]
    places = [shard if "://" in shard else os.path.abspath(shard) for shard in shards]  # noqa: PTH100 - keeps links
    columns = {name: table[name] for name in ("key", "offset", "size", "label")}
    return Task(block, pa.table({"row": np.array(block.rows), "shard": places} | columns))


def batches_of(index: Index, block: Block, rows: list[int], batch: int) -> Task:
    """Return the batches of `batch` images of a block that hold any of `rows`, as a task.

    A row comes out with the same bytes only from a batch of the same images (the rounding of a
    matrix product depends on its place).
    """
    return Task(block, task(index, block).samples.take(places_of(block, rows, batch)))


def places_of(block: Block, rows: list[int], batch: int) -> np.ndarray:
    """Return the places in a block of the batches that hold any of `rows`."""
    numbers = np.unique((np.array(rows) - block.start) // batch)
    places = (numbers[:, None] * batch + np.arange(batch)).ravel()
    return places[places < len(block.rows)]
