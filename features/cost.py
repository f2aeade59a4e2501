"""What a store costs: foretold from its layout, and what is really there, in time too.

A picture is one view of one image: what the backbone sees, and what rates count. Bytes of chunks
and numbers of files are exact; bytes of JSON are within a tenth.
"""

import json
import math
from dataclasses import dataclass, replace

import numpy as np
import pyarrow.compute as pc

from askance.features.blocks import plan
from askance.features.embed import score_arrays
from askance.features.index import Index
from askance.features.layout import STATUS, Array, Layout
from askance.features.reader import extents
from askance.features.recipe import LogitsKept, Recipe
from askance.features.store import DONE, NOT_YET, REFUSED, FeatureStore
from askance.pipeline.artifacts import Place, listing
from askance.pipeline.runs import lasting, read_log

MANY_FILES = 10_000
SMALL_CHUNK, LARGE_CHUNK = 1 << 20, 64 << 20  # bytes
KEPT: tuple[LogitsKept, ...] = ("none", "top", "full")

# Bytes of JSON as files of this format have them: metadata and their hash, a block's record, a
# chunk's hash beside its name, and all that is there once.
ARRAY_JSON, GROUP_JSON, RECORD_JSON, HASH_LINE, REST = 590, 160, 130, 82, 1_600


@dataclass(frozen=True)
class Stored:
    """An array on disk; `bytes` and `chunk_bytes` count whole chunks, as they are written."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    chunk: tuple[int, ...]
    chunk_bytes: int
    files: int
    bytes: int


@dataclass(frozen=True)
class StoreCost:
    """A store on disk: its arrays, and beside them records, index and metadata; totals of both."""

    rows: int
    arrays: tuple[Stored, ...]
    beside_files: int
    beside_bytes: int
    files: int
    bytes: int
    warnings: tuple[str, ...]


def cost(layout: Layout, rows: int, index_bytes: int = 0) -> StoreCost:
    """Say what the finished store of a layout takes, `rows` rows and an index file of some bytes.

    No row is refused: each takes a line of JSON more.
    """
    by_row = layout.arrays | {"status": STATUS, "label": Array((), "int32", ())}
    for name, values in layout.known.items():
        by_row[name] = Array(values.shape[1:], str(values.dtype), values.shape[1:])
    arrays = [stored(name, array, rows, layout.block) for name, array in by_row.items()]
    for name, values in layout.whole.items():
        arrays.append(_stored(name, values.shape, values.shape, str(values.dtype)))
    blocks = -(-rows // layout.block)
    groups = len({array.name.rpartition("/")[0] for array in arrays})
    beside_files = len(arrays) + groups + blocks + 4  # index, manifest, account, refusals
    about = json.dumps(layout.content | {"made": layout.made}, indent=2)
    beside_bytes = index_bytes + len(arrays) * ARRAY_JSON + groups * GROUP_JSON + 2 * len(about)
    beside_bytes += sum(array.files * (HASH_LINE + len(array.name)) for array in arrays)
    beside_bytes += blocks * RECORD_JSON + REST
    files = beside_files + sum(array.files for array in arrays)
    total = beside_bytes + sum(array.bytes for array in arrays)
    warnings = _warnings(arrays[: len(by_row)], rows, layout.block, files)
    return StoreCost(rows, tuple(arrays), beside_files, beside_bytes, files, total, warnings)


def stored(name: str, array: Array, rows: int, block: int) -> Stored:
    """Say what an array of the schema takes."""
    return _stored(name, (rows, *array.row), (block, *array.chunk), array.dtype)


def _stored(name: str, shape: tuple[int, ...], chunk: tuple[int, ...], dtype: str) -> Stored:
    files = math.prod(-(-side // part) for side, part in zip(shape, chunk, strict=True))
    chunk_bytes = math.prod(chunk) * np.dtype(dtype).itemsize
    return Stored(name, shape, dtype, chunk, chunk_bytes, files, files * chunk_bytes)


def _warnings(arrays: list[Stored], rows: int, block: int, files: int) -> tuple[str, ...]:
    found = []
    blocks = -(-rows // block)
    per_block = 1 + sum(array.files for array in arrays) // blocks
    if files > MANY_FILES:
        room = (MANY_FILES - (files - per_block * blocks)) // per_block
        larger = math.ceil(rows / room / 1024) * 1024
        found.append(f"{files:,} files, more than {MANY_FILES:,}: --block {larger} stays below")
    largest, widest = (max(arrays, key=key) for key in (lambda a: a.bytes, lambda a: a.chunk_bytes))
    if largest.chunk_bytes < SMALL_CHUNK <= largest.chunk_bytes / block * rows:
        larger = block << math.ceil(math.log2(SMALL_CHUNK / largest.chunk_bytes))
        found.append(_chunks(largest, "less than 1", larger))
    if widest.chunk_bytes > LARGE_CHUNK:
        smaller = block >> math.ceil(math.log2(widest.chunk_bytes / LARGE_CHUNK))
        found.append(_chunks(widest, "more than 64", max(1, smaller)))
    return tuple(found)


def _chunks(array: Stored, limit: str, block: int) -> str:
    size = f"{array.chunk_bytes / 2**20:,.2f} MiB"
    return f"chunks of {array.name} have {size}, {limit} MiB: --block {block} mends it"


def schema(recipe: Recipe, width: int, columns: int) -> dict[str, Array]:
    """Return the arrays of a backbone of some `width` and `columns` of a classifier (0: none)."""
    views = len(recipe.views)
    found = {"embedding": Array((views, width), recipe.dtype, (1, width))}
    return found | (score_arrays(recipe, views, columns) if columns else {})


def logits_bytes(recipe: Recipe, columns: int, rows: int) -> dict[str, int]:
    """Return what the logits of a classifier of `columns` take, by what is kept of them."""
    found = {}
    for kept in KEPT:
        arrays = schema(replace(recipe, logits=kept), 1, columns).items()
        logits = [item for item in arrays if item[0].startswith("logits")]
        found[str(kept)] = sum(stored(*item, rows, recipe.block).bytes for item in logits)
    return found


@dataclass(frozen=True)
class Reading:
    """What is read of the shards: images, and the extents they are read in."""

    shards: int
    image_bytes: int
    reads: int
    read_bytes: int
    largest_read: int


def reading(index: Index, block: int) -> Reading:
    """Say what an extraction reads."""
    sizes = np.array(
        [
            extent.stop - extent.start
            for b in plan(len(index), block)
            for extent in extents(index.table.slice(b.start, len(b.rows)))
        ]
    )
    return Reading(
        shards=pc.count_distinct(index.table["shard"]).as_py(),
        image_bytes=pc.sum(index.table["size"]).as_py(),
        reads=len(sizes),
        read_bytes=int(sizes.sum()),
        largest_read=int(sizes.max()),
    )


@dataclass(frozen=True)
class Actual:
    """What is there of a store: rows, disk, and its runs so far as they were logged."""

    written: int
    refused: int
    left: int
    files: int
    bytes: int
    pictures: int
    seconds: float


def actual(store: Place) -> Actual:
    """Count what is there of a store, and sum its runs."""
    opened = FeatureStore(store)
    status = np.bincount(opened.status, minlength=3)
    sizes = listing(store).values()
    runs = lasting(read_log(store), opened.fingerprint)
    return Actual(
        written=int(status[DONE]),
        refused=int(status[REFUSED]),
        left=int(status[NOT_YET]),
        files=len(sizes),
        bytes=sum(sizes),
        pictures=sum(run["count"] for run in runs),
        seconds=float(sum(run["seconds"] for run in runs)),
    )
