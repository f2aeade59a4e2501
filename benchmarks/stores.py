"""Stores of random numbers, written as extract and probe write theirs."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import torch

from askance.features.batches import Batches
from askance.features.index import write_index
from askance.features.layout import Array, Layout
from askance.features.store import BACKBONE, FeatureStore
from askance.features.writer import StoreWriter
from askance.heads.head import Batch, Setup

BLOCK, VIEWS, WIDTH, DEPTH = 1024, 2, 512, 2


class Stores(NamedTuple):
    """An upstream store and that of its losses, and what heads are built from."""

    features: FeatureStore
    losses: FeatureStore
    setup: Setup

    @classmethod
    def written(cls, folder: Path, images: int, dim: int, classes: int) -> "Stores":
        """Write both, two views of each image."""
        random, row = np.random.default_rng(0), np.arange(images)
        columns = {"key": row.astype(str), "shard": ["photos.tar"] * images, "position": row}
        columns |= {"offset": row, "size": row, "label": row % classes, "split": [""] * images}
        table = pa.table(columns | {"votes": pa.nulls(images, pa.list_(pa.int32()))})
        index = write_index(folder, table, {}, {"photos.tar": ""})
        content = {"views": ["plain", "augment"]} | dict.fromkeys(BACKBONE, "random")
        embedding = {"embedding": Array((VIEWS, dim), "float16", (1, dim))}
        upstream = StoreWriter(folder / "upstream.zarr", Layout(embedding, BLOCK, content), index)
        weight = random.standard_normal((classes, dim), np.float32) / dim**0.5
        bias, label = np.zeros(classes, np.float32), np.arange(classes, dtype=np.int32)
        named = {"weight": weight, "bias": bias, "label": label}
        whole = {f"classifier/{name}": values for name, values in named.items()}
        content |= {"upstream": upstream.fingerprint}
        loss = {"loss": Array((VIEWS,), "float32", (VIEWS,))}
        probe = StoreWriter(folder / "probe.zarr", Layout(loss, BLOCK, content, whole=whole), index)
        for writer, name, row_of in (
            (upstream, "embedding", (VIEWS, dim)),
            (probe, "loss", (VIEWS,)),
        ):
            with writer:
                for block in writer.missing():
                    values = random.standard_normal((len(block.rows), *row_of), np.float32)
                    writer.write(block, {name: values}, {})
                writer.finish()
        setup = Setup(dim, WIDTH, DEPTH, torch.from_numpy(weight), torch.from_numpy(bias))
        return cls(FeatureStore.open(upstream.path), FeatureStore.open(probe.path), setup)

    def rows(self, batch: int, dtype: torch.dtype) -> Iterator[Batch]:
        """Yield batches of random rows of all images, endlessly."""
        none = np.zeros(len(self.features.rows), bool)
        batches = Batches(
            self.features, self.losses, batch=batch, rows=True, pairs=False, held_out=none, seed=0,
            dtype=dtype,
        )  # fmt: skip
        for step in batches.steps(0, sys.maxsize):
            assert step.rows is not None
            yield Batch(*step.rows)
