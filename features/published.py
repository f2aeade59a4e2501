"""The caches of the original program, read and written: one HDF5 file of embeddings and labels.

`embed` (rows, d) and `label` (rows, 1), both float32. The rows of its epochs stand one after
another; nothing tells which of them are views of one image.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Int32

from askance.features.blocks import Block, task
from askance.features.index import SCHEMA, Index
from askance.features.store import FeatureStore, Slices
from askance.pipeline.artifacts import sha256

if TYPE_CHECKING:
    from askance.features.embed import Embedded, Embedder
    from askance.features.layout import Layout

FILE = "dataset.hdf5"
BATCH = 128  # rows that the original writes first: h5py chooses the chunks from their shape
EXACT = 2**24  # every whole number below is a float32


def h5py() -> Any:  # noqa: ANN401 - a module
    """Return the library, which few need.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import h5py
    except ImportError as error:
        raise ValueError(
            f"expected h5py for the original's caches, got {error}: install askance[published]"
        ) from error
    return h5py


def index_of(path: Path, width: int) -> Index:
    """Return the rows of a cache as an index, whose keys are their numbers.

    Args:
        path: of the HDF5 file.
        width: columns that the embeddings must have.

    Raises:
        ValueError: not a cache, of another width, one that was cut short, or with labels that are
            not whole numbers.
        FileNotFoundError: no such file.
    """
    with _opened(path) as (embed, label):
        if embed.shape[1] != width:
            raise ValueError(
                f"expected embeddings of {width} columns, as the backbone's, got {embed.shape[1]}"
                f" in {path}: name the backbone that it was made with"
            )
        labels = _whole(label[:, 0], path)
    rows, none = np.arange(len(labels)), np.zeros(len(labels), np.int64)
    columns = {
        "key": pc.utf8_lpad(pa.array(rows).cast(pa.string()), 9, "0"),
        "shard": pa.array([path.name]).take(pa.array(none)),
        "position": rows,
        "offset": none,
        "size": none,
        "label": labels,
        "split": pa.array([""]).take(pa.array(none)),
        "votes": pa.nulls(len(rows), SCHEMA.field("votes").type),
    }
    table = pa.table(columns, schema=SCHEMA)
    return Index(path.parent, table, classes={}, contents={path.name: sha256(path)})


def layout_of(embedder: "Embedder", index: Index) -> "Layout":
    """Say what the store of a cache will hold: as if extracted, but that no picture is known."""
    layout = embedder.layout(index)
    return replace(layout, content=layout.content | {"imported": FILE})


def embedded(
    path: Path, embedder: "Embedder", index: Index, blocks: list[Block]
) -> "Iterator[Embedded]":
    """Yield blocks of a cache, one read after another: rows that are not finite are refused."""
    with _opened(path) as (embed, _):
        for block in blocks:
            yield embedder.embedded(task(index, block), embed[block.start : block.stop], {})


def write(path: Path, store: FeatureStore, advance: Callable[[int], None]) -> None:
    """Write all done rows of a store as a cache, one view after another; `advance` is told of rows.

    Raises:
        ValueError: there is no row, or a label that float32 can't hold.
    """
    rows, source, block = len(store.rows), store.array("embedding"), store.content["block"]
    _, views, width = source.shape
    if not rows:
        raise ValueError(f"expected rows to export, got none that is not refused in {store.path}")
    if (largest := np.abs(store.labels.astype(np.int64)).max()) >= EXACT:
        raise ValueError(
            f"expected labels below {EXACT:,}, which float32 holds exactly, got {largest} in"
            f" {store.path}"
        )
    with h5py().File(path, "w") as file:
        embed, label = (
            file.create_dataset(name, (BATCH, columns), "f4", maxshape=(None, columns))
            for name, columns in (("embed", width), ("label", 1))
        )
        embed.resize(views * rows, axis=0)
        label.resize(views * rows, axis=0)
        for view in range(views):
            slices = Slices(source, view, store.rows)
            for start in range(0, rows, block):
                part = slices[start : start + block]
                there = slice(view * rows + start, view * rows + start + len(part))
                embed[there] = part
                label[there, 0] = store.labels[start : start + len(part)]
                advance(len(part))


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a cache and yield its two arrays, unread.

    Nothing outside the file is read, whatever it refers to. An array that was enlarged and never
    filled, as by a kill, would read as zeros.
    """
    library = h5py()
    if not path.is_file():
        raise FileNotFoundError(f"expected a cache of the original program, got no file {path}")
    try:
        file = library.File(path)
    except OSError as error:
        raise ValueError(f"expected an HDF5 file in {path}, got {error}") from error
    with file:
        embed, label = (_array(library, file, name) for name in ("embed", "label"))
        if not (embed and label and _fit(embed, label)):
            raise ValueError(
                f"expected embed (rows, d) and label (rows, 1), both float32, in {path}, got"
                f" {embed} and {label}"
            )
        for array in (embed, label):
            if array.id.get_space_status() != library.h5d.SPACE_STATUS_ALLOCATED:
                raise ValueError(
                    f"expected a whole cache, got rows of {array.name} in {path} that were never"
                    " written: it was cut short, make it again"
                )
        yield embed, label


def _fit(embed: Any, label: Any) -> bool:  # noqa: ANN401
    right = embed.dtype == label.dtype == np.float32
    return right and embed.ndim == 2 and embed.size > 0 and label.shape == (len(embed), 1)


def _array(library: Any, file: Any, name: str) -> Any:  # noqa: ANN401
    """Return an array that lies in this very file; else None."""
    if not isinstance(file.get(name, getlink=True), library.HardLink):
        return None
    found = file[name]
    inside = isinstance(found, library.Dataset) and not (found.is_virtual or found.external)
    return found if inside else None


def _whole(label: Float32[np.ndarray, " n"], path: Path) -> Int32[np.ndarray, " n"]:
    bad = np.flatnonzero((label != np.rint(label)) | ~(np.abs(label) < EXACT))
    if len(bad):
        raise ValueError(
            f"expected whole numbers below {EXACT:,} as labels in {path}, got {label[bad[0]]} in"
            f" row {bad[0]}"
        )
    return label.astype(np.int32)
