"""Cases: the sets to evaluate on, with what is known of their images before any head is asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Int64

from askance.eval.summary import Mixture, Queries
from askance.features.classify import scores
from askance.features.store import FeatureStore
from askance.pipeline.artifacts import Place

AT_A_TIME = 4096  # images


@dataclass(frozen=True)
class Images:
    """Some images of a store, by their rows in its index."""

    store: FeatureStore
    row: Int64[np.ndarray, " q"]

    @property
    def places(self) -> Int64[np.ndarray, " q"]:
        """Where they are among the done rows."""
        return np.searchsorted(self.store.rows, self.row)

    @property
    def label(self) -> Int64[np.ndarray, " q"]:
        return self.store.labels[self.places].astype(np.int64)


class Mixed(NamedTuple):
    """What mix found, and the images of either half; upstream ones come first."""

    table: pa.Table
    upstream: Images
    downstream: Images


class Case(NamedTuple):
    """A set to evaluate on: what retrieve found, what is known of its queries, its mixture."""

    table: pa.Table
    queries: Queries
    images: Images
    mixed: Mixed | None


def read_neighbours(path: Path, **stores: FeatureStore) -> pa.Table:
    """Read what `retrieve` or `mix` found in these stores, named as they are in its metadata.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it was made from other stores.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"expected the neighbours in {path}, got no such file: run retrieve"
        )
    table = pq.read_table(path)
    about = table.schema.metadata or {}
    for name, store in stores.items():
        if about.get(name.encode(), b"").decode() != store.edition:
            raise ValueError(
                f"expected neighbours in {store.path}, got those of another: run retrieve"
            )
    return table


def read_case(
    name: str,
    store: FeatureStore,
    stores: Place,
    neighbours: Path,
    losses: FeatureStore | None,
) -> Case:
    """Read what is known of a set; `losses`: if its classes are the upstream's."""
    table = read_neighbours(neighbours / f"{name}.parquet", store=store)
    images = Images(store, table["row"].to_numpy())
    path, mixed, mixture = neighbours / "mixed" / f"{name}.parquet", None, None
    if path.is_file():
        mixed = _mixed(path, store, stores)
        columns = mixed.table["upstream"].to_numpy(), mixed.table["hit"].to_numpy()
        mixture = Mixture(*columns)
    correct, loss = _classified(images, losses) if losses else (None, None)
    queries = Queries(
        name=name,
        hit=table["hit"].to_numpy(),
        fraction=store.read("crop")[images.places],
        votes=store.read("votes")[images.places] if "votes" in store.group else None,
        correct=correct,
        loss=loss,
        mixture=mixture,
    )
    return Case(table, queries, images, mixed)


def _mixed(path: Path, store: FeatureStore, stores: Place) -> Mixed:
    named = (pq.read_schema(path).metadata or {}).get(b"name", b"").decode()
    upstream = FeatureStore.open(stores / f"{named}.zarr")
    table = read_neighbours(path, upstream=upstream, store=store)
    known, row = table["upstream"].to_numpy(), table["row"].to_numpy()
    return Mixed(table, Images(upstream, row[known]), Images(store, row[~known]))


def columns_of(store: FeatureStore, losses: FeatureStore) -> Int64[np.ndarray, " m"]:
    """Return the column of the upstream classifier that each done row's label is.

    Raises:
        ValueError: a label has none, or another name than there.
    """
    columns, known = losses.array("classifier/label")[:], losses.index.classes
    foreign = np.setdiff1d(store.labels, columns).tolist()
    foreign += [label for label, name in store.index.classes.items() if known.get(label) != name]
    if foreign:
        raise ValueError(
            f"expected the classes of the upstream store in {store.path}, got others (labels such"
            f" as {foreign[:3]}): leave {store.path.stem} out of the upstream sets"
        )
    return np.searchsorted(columns, store.labels)


def _classified(images: Images, losses: FeatureStore) -> tuple[np.ndarray, np.ndarray]:
    """Return whether the upstream classifier is right about each image, and its loss."""
    places = images.places
    column = columns_of(images.store, losses)[places]
    loss, correct = [], []
    for start in range(0, len(column), AT_A_TIME):  # all logits at once could fill the memory
        part = slice(start, start + AT_A_TIME)
        logits = losses.classifier.logits(images.store.some("plain", places[part]))
        loss.append(scores(logits[:, None], column[part])["loss"][:, 0])
        correct.append(logits.argmax(1) == column[part])
    return np.concatenate(correct), np.concatenate(loss)
