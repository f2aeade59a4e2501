"""The index: the table of a set's samples, one row each.

Comes in: rows from a source. Goes out: `index.parquet`, and the `Index` every later stage reads.
Row `i` of the index is row `i` of every array made from the set.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from askance.pipeline.artifacts import Place, write_bytes

SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("shard", pa.string(), nullable=False),  # a path (relative: to the index) or a URL
        pa.field("position", pa.int64(), nullable=False),  # the sample's number in its shard
        pa.field("offset", pa.int64(), nullable=False),  # of the image's first byte in the shard
        pa.field("size", pa.int64(), nullable=False),  # of the image, in bytes
        pa.field("label", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),  # "" where the source has none
        pa.field("votes", pa.list_(pa.int32())),  # null where nobody voted
    ]
)

ROWS = 1 << 16  # hashed at a time

assert SCHEMA.get_field_index("shard") == 1


@dataclass(frozen=True)
class Index:
    """A set's samples, and where its shards lie.

    `classes` names the labels: {label: name}; empty where the source has numbers only.
    `contents` tells each shard's bytes from others: {shard: hash} (`shards.content`).
    """

    folder: Place
    table: pa.Table
    classes: dict[int, str]
    contents: dict[str, str]

    def __len__(self) -> int:
        return self.table.num_rows

    @cached_property
    def keys(self) -> list[str]:
        return self.table["key"].to_pylist()

    @cached_property
    def labels(self) -> np.ndarray:
        """The labels, (n,) int32."""
        return self.table["label"].to_numpy()

    @cached_property
    def digest(self) -> str:
        """A hash of all that decides the rows' content: not of where the shards lie."""
        total = hashlib.sha256()
        for batch in self.table.cast(SCHEMA).combine_chunks().to_batches(max_chunksize=ROWS):
            shards = batch["shard"].dictionary_encode()
            hashes = pa.array([self.contents[shard] for shard in shards.dictionary.to_pylist()])
            named = batch.set_column(1, SCHEMA.field("shard"), hashes.take(shards.indices))
            total.update(named.serialize())
        return total.hexdigest()

    def location(self, shard: str) -> str:
        """Return the path or URL of `shard`, resolved against the index's folder."""
        return shard if "://" in shard else str(self.folder / shard)


def write_index(
    folder: Place, table: pa.Table, classes: dict[int, str], contents: dict[str, str]
) -> Index:
    """Write `folder/index.parquet` and return it as an `Index`.

    Raises:
        ValueError: there is no row, or two rows have one key.
    """
    if not table.num_rows:
        raise ValueError(f"expected samples for {folder}, got none: check its source and filters")
    check_keys(table, place)
    names = json.dumps({str(label): name for label, name in sorted(classes.items())})
    about = {"classes": names, "contents": json.dumps(contents)}
    table = table.cast(SCHEMA).replace_schema_metadata(about)
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    write_bytes(folder / "index.parquet", sink.getvalue().to_pybytes())
    return Index(folder, table, classes, contents)


def read_index(folder: Place) -> Index:
    """Read the index of the set prepared in `folder`.

    Raises:
        FileNotFoundError: no set is prepared there.
    """
    path = folder / "index.parquet"
    if not path.is_file():
        raise FileNotFoundError(f"expected a prepared set in {folder}, got no {path}: run prepare")
    table = pq.read_table(pa.BufferReader(path.read_bytes()))
    about = {name: json.loads(text) for name, text in (table.schema.metadata or {}).items()}
    classes = {int(label): name for label, name in about[b"classes"].items()}
    return Index(folder, table.cast(SCHEMA), classes, about[b"contents"])


def place(row: dict[str, Any]) -> str:
    """Say where a row's image lies."""
    return f"{row['shard']} (sample {row['position']})"


def check_keys(table: pa.Table, where: Callable[[dict[str, Any]], str]) -> None:
    """Check that no two rows have one key; `where` says where a row comes from.

    Raises:
        ValueError: two have; it names the place of both.
    """
    if pc.count_distinct(table["key"]).as_py() == len(table):
        return
    counts = pc.value_counts(table["key"])
    key = counts.field("values")[int(np.argmax(counts.field("counts")))].as_py()
    twins = table.filter(pc.equal(table["key"], key))
    places = " and ".join(where(row) for row in twins.slice(0, 2).to_pylist())
    raise ValueError(
        f"expected one sample per key, got {len(twins)} with the key {key!r}: {places}"
    )
