"""CIFAR-100: 60,000 photos of 32 x 32 pixels in 100 classes, from its binary files.

The files for Python are pickles, which may run code when they are read; these are plain bytes.
"""

from functools import cached_property

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from askance.features.sources import png
from askance.features.sources.published import Published
from askance.features.sources.tfds import deal

RECORD = 2 + 3 * 32 * 32  # bytes: the coarse and the fine label, then three planes


class Cifar100(Published):
    """CIFAR-100 in its original order; 90 % of its training images are `train`, as in VTAB."""

    name = "cifar100"
    files = (
        (
            "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ),
    )
    inside = "cifar-100-binary"
    holds = ("train.bin", "test.bin", "fine_label_names.txt")

    def samples(self) -> pa.Table:
        """List the 50,000 training images, then the 10,000 test images.

        Raises:
            ValueError: the files have another form.
            OSError: the set could not be fetched.
        """
        names = (self._root / "fine_label_names.txt").read_text().split()
        labels = np.concatenate([records[:, 1] for records in self._records.values()])
        if labels.max() >= len(names):
            raise ValueError(
                f"expected labels below {len(names)}, the number of names, got {labels.max()} in"
                f" {self._root}: unpack the archive again"
            )
        trained, tested = (range(len(records)) for records in self._records.values())
        return pa.table(
            {
                "key": [f"train/{n:05}" for n in trained] + [f"test/{n:05}" for n in tested],
                "class": [names[label] for label in labels],
                "split": deal(trained, train=90, val=10) + ["test"] * len(tested),
            }
        )

    def image(self, row: int) -> tuple[str, bytes]:
        """Return the image as PNG."""
        trained = len(self._records["train"])
        part, number = ("train", row) if row < trained else ("test", row - trained)
        planes = self._records[part][number, 2:].reshape(3, 32, 32)
        return "png", png.encode(np.ascontiguousarray(planes.transpose(1, 2, 0)))

    @cached_property
    def _records(self) -> dict[str, UInt8[np.ndarray, "n 3074"]]:
        found = {}
        for part in ("train", "test"):
            content = np.fromfile(path := self._root / f"{part}.bin", np.uint8)
            if not len(content) or len(content) % RECORD:
                raise ValueError(
                    f"expected records of {RECORD} bytes in {path}, got {len(content)} bytes:"
                    " unpack the archive again"
                )
            found[part] = content.reshape(-1, RECORD)
        return found
