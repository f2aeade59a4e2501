"""The feature store (format askance-features/1): one Zarr group, opened for reading.

A store is an ordinary group that `zarr.open` and dask read too; `FeatureStore` joins its rows with
keys and labels. What is not an array lies in the folder of the array `status`, where Zarr does not
look: the index, one record per finished block, and `refused.parquet`. `askance.features.writer`
writes it.
"""

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from jaxtyping import Float32, Int32, Int64

from askance.features.classify import Classifier
from askance.features.index import Index, read_index
from askance.pipeline.artifacts import Place, place

FORMAT = "askance-features/1"
NOT_YET, DONE, REFUSED = 0, 1, 2
# The places of what is not an array, in a store.
MANIFEST, BLOCKS = "status/manifest.json", "status/blocks"
REFUSALS, ACCOUNT = "status/refused.parquet", "status/account.json"
BACKBONE = ("backbone", "weights", "preprocessing", "precision")


class FeatureStore:
    """A finished store, for reading."""

    def __init__(self, path: Place) -> None:
        self.path = path
        self.group = opened(path)
        self.content: dict[str, Any] = self.group.attrs["content"]  # type: ignore[assignment]

    @classmethod
    def open(cls, path: Place) -> "FeatureStore":
        """Open a finished store.

        Raises:
            ValueError: not a store of this format, or one that is not finished.
        """
        found = attributes(path)
        if found.get("format") != FORMAT:
            raise ValueError(
                f"expected a store of format {FORMAT} at {path}, got"
                f" {found.get('format', 'none')}: run extract"
            )
        store = cls(path)
        left = int((store.status == NOT_YET).sum())
        if left:
            raise ValueError(
                f"expected a finished store, got {path} with {left} of {len(store.status)} rows"
                " not done: run extract again, it goes on where it stopped"
            )
        return store

    @property
    def views(self) -> tuple[str, ...]:
        return tuple(self.content["views"])

    @property
    def fingerprint(self) -> str:
        return str(self.group.attrs["fingerprint"])

    @property
    def edition(self) -> str:
        """The fingerprint, and how many rows are done: more, once refused images are mended."""
        return f"{self.fingerprint}/{len(self.rows)}"

    @property
    def backbone(self) -> dict[str, Any]:
        """What a head must agree with: the network, its weights, preprocessing and precision."""
        return {name: self.content[name] for name in BACKBONE}

    @cached_property
    def status(self) -> np.ndarray:
        return np.asarray(self.array("status")[:])

    @cached_property
    def rows(self) -> Int64[np.ndarray, " m"]:
        """The rows of the index that are done: what every reader below returns, in order."""
        return np.flatnonzero(self.status == DONE)

    @cached_property
    def index(self) -> Index:
        return read_index(self.path / "status")

    @property
    def keys(self) -> list[str]:
        """The keys of the done rows."""
        return [self.index.keys[row] for row in self.rows]

    @cached_property
    def labels(self) -> Int32[np.ndarray, " m"]:
        """The labels of the done rows."""
        return self.read("label")

    def embedding(self, view: str) -> Float32[np.ndarray, "m d"]:
        """Read the embeddings of one view.

        Raises:
            ValueError: the store has no such view.
        """
        return self.slices(view)[:]

    def slices(self, view: str) -> "Slices":
        """Return the embeddings of one view, unread: slices of them are read when asked for.

        Raises:
            ValueError: the store has no such view.
        """
        return Slices(self.array("embedding"), self._place(view), self.rows)

    def some(self, view: str, places: Int64[np.ndarray, " k"]) -> Float32[np.ndarray, "k d"]:
        """Read the embeddings of one view at some of the done rows, by their place among them.

        Raises:
            ValueError: the store has no such view.
        """
        found = self.array("embedding").oindex[self.rows[places], self._place(view)]
        return np.asarray(found, np.float32)

    def _place(self, view: str) -> int:
        if view not in self.views:
            raise ValueError(f"expected one of the views {self.views} of {self.path}, got {view!r}")
        return self.views.index(view)

    @cached_property
    def classifier(self) -> Classifier:
        """The classifier that the store's losses come from.

        Raises:
            ValueError: the store has none.
        """
        weight, bias = (np.asarray(self.array(f"classifier/{n}")[:]) for n in ("weight", "bias"))
        return Classifier(weight, bias)

    def array(self, name: str) -> zarr.Array[Any]:
        """Return an array by name, unread: slices of it are read when asked for.

        Raises:
            ValueError: the store has no such array.
        """
        found = self.group.get(name)
        if not isinstance(found, zarr.Array):
            have = ", ".join(sorted(self.group.array_keys()))
            raise ValueError(f"expected an array {name!r} in {self.path}, got {have}")  # noqa: TRY004
        return found

    def read(self, name: str) -> np.ndarray:
        """Read an array at the done rows, whole, in its stored type."""
        return np.asarray(self.array(name)[:])[self.rows]


class Slices:
    """The embeddings of a view at the done rows, (m, d), on disk until sliced."""

    def __init__(self, source: zarr.Array[Any], place: int, rows: Int64[np.ndarray, " m"]) -> None:
        self.source, self.place, self.rows = source, place, rows
        self.shape = (len(rows), source.shape[-1])

    def __getitem__(self, part: slice) -> Float32[np.ndarray, "k d"]:
        """Read a run of them."""
        rows = self.rows[part]
        if not len(rows):
            return np.empty((0, self.shape[1]), np.float32)
        first, last = rows[0], rows[-1]
        whole = np.asarray(self.source[first : last + 1, self.place], np.float32)
        return whole if len(whole) == len(rows) else whole[rows - first]


def record_of(number: int) -> str:
    """Return the name of a block's record."""
    return f"{BLOCKS}/{number:05}.json"


def open_store(path: Path | str) -> FeatureStore:
    """Open a finished feature store, at a path or URL: its arrays, with keys and labels.

    Raises:
        ValueError: not a store of this format, one that is not finished, or a URL that may hold
            credentials.
    """
    return FeatureStore.open(place(str(path)))


def opened(path: Place, mode: Literal["r", "r+"] = "r") -> zarr.Group:
    """Open a store's group, which may be a stranger's: in Zarr's format 3 alone.

    An array of format 2 names its codecs freely, one of which unpickles; the consolidated metadata
    of a group of format 3 can hold such an array (tests/features/test_hostile_stores.py).
    """
    return zarr.open_group(str(path), mode=mode, zarr_format=3, use_consolidated=False)


def attributes(path: Place) -> dict[str, Any]:
    """Return a store's attributes; none where there is no store, or none that can be read."""
    try:
        return dict(opened(path).attrs)
    except (FileNotFoundError, ValueError):
        return {}
