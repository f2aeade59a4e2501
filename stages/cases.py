"""Cases: the sets to evaluate on, with what is known of their images before any head is asked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float32, Int64

from askance.eval.summary import Mixture, Queries
from askance.features.classify import Classifier, scores
from askance.features.store import FeatureStore
from askance.pipeline.artifacts import Place

CELLS = 2**22  # logits at a time

Classified = tuple[Bool[np.ndarray, " q"], Float32[np.ndarray, " q"]]  # is it right, and its loss


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


def check_named(option: str, names: Sequence[str], sets: Sequence[str]) -> None:
    """Stop where an option names a set that is none of those to look at.

    Raises:
        ValueError: it does.
    """
    if unknown := sorted(set(names) - set(sets)):
        raise ValueError(
            f"expected {option} among {list(sets)}, got {unknown}: name them in"
            f" {option.partition('.')[0]}.sets, too"
        )


def read_neighbours(path: Path, stage: str = "retrieve", **stores: FeatureStore) -> pa.Table:
    """Read what a stage found in these stores, named as they are in its table's metadata.

    Raises:
        FileNotFoundError: there is no such table.
        ValueError: it was made from other stores.
    """
    table = pq.read_table(_there(path, stage))
    about = table.schema.metadata or {}
    for name, store in stores.items():
        if about.get(name.encode(), b"").decode() != store.edition:
            raise ValueError(
                f"expected neighbours in {store.path}, got those of another: run {stage}"
            )
    return table


def _there(path: Path, stage: str) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"expected the neighbours in {path}, got no such file: run {stage}")
    return path


def read_case(
    name: str, store: FeatureStore, neighbours: Path, losses: FeatureStore | None
) -> Case:
    """Read what is known of a set; `losses`: if its classes are the upstream's."""
    table = read_neighbours(neighbours / f"{name}.parquet", store=store)
    images = Images(store, table["row"].to_numpy())
    places = images.places
    correct, loss = _classified(images, losses) if losses else (None, None)
    queries = Queries(
        name=name,
        row=images.row,
        near=table["neighbour"].to_numpy(),
        hit=table["hit"].to_numpy(),
        fraction=store.read("crop")[places],
        votes=store.read("votes")[places] if "votes" in store.group else None,
        correct=correct,
        loss=loss,
    )
    return Case(table, queries, images, None)


def with_mixture(case: Case, path: Path, stores: Place) -> Case:
    """Add the mixture that mix wrote to a path."""
    about = pq.read_schema(_there(path, "mix")).metadata or {}
    upstream = FeatureStore.open(stores / f"{about.get(b'name', b'').decode()}.zarr")
    store = case.images.store
    table = read_neighbours(path, "mix", upstream=upstream, store=store)
    known, row = table["upstream"].to_numpy(), table["row"].to_numpy()
    mixed = Mixed(table, Images(upstream, row[known]), Images(store, row[~known]))
    mixture = Mixture(known, table["hit"].to_numpy())
    return case._replace(queries=replace(case.queries, mixture=mixture), mixed=mixed)


def class_names(store: FeatureStore) -> set[str]:
    """Return the names of the classes that occur, without their source; none for bare numbers."""
    found = (store.index.classes.get(label, "") for label in np.unique(store.labels).tolist())
    return {name.rpartition("/")[2] for name in found if name}


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


def logits(
    images: Images, classifiers: Sequence[Classifier], number: Int64[np.ndarray, " q"]
) -> Iterator[Float32[np.ndarray, "m c"]]:
    """Yield the logits of the images, some at a time, each by the classifier of its number."""
    classes, places = len(classifiers[0].bias), images.places
    step = max(1, CELLS // classes)
    for start in range(0, len(places), step):
        part = slice(start, start + step)
        embedding = images.store.some("plain", places[part])
        found = np.empty((len(embedding), classes), np.float32)
        for each in np.unique(number[part]):
            here = number[part] == each
            found[here] = classifiers[each].logits(embedding[here])
        yield found


def _classified(images: Images, losses: FeatureStore) -> Classified:
    """Return whether the upstream classifier is right about each image, and its loss."""
    column = columns_of(images.store, losses)[images.places]
    loss, correct, start = [], [], 0
    for some in logits(images, [losses.classifier], np.zeros_like(column)):
        own = column[start : start + len(some)]
        loss.append(scores(some[:, None], own)["loss"][:, 0])
        correct.append(some.argmax(1) == own)
        start += len(some)
    return np.concatenate(correct), np.concatenate(loss)
