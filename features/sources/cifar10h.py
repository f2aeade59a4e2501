"""CIFAR-10H: CIFAR-10's test images with the votes of about 50 people each (CC BY-NC-SA 4.0)."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
from jaxtyping import Int32

from askance.features import packages
from askance.features.sources.cifar10 import CLASSES, Cifar10
from askance.features.sources.published import fetch

URL = "https://raw.githubusercontent.com/jcpeterson/cifar-10h/master/data/cifar10h-counts.npy"
SHA256 = "9b36b4550349af56c79083356312eb4af856cc5fd3caf1f669d40b9d0bbb69ff"


@dataclass(frozen=True)
class Cifar10h:
    """The split `test` of `cifar10`, under the same keys, with votes.

    `votes` is the path of `cifar10h-counts.npy`: the counts, (10000, 10), in CIFAR-10's order;
    without it, the file is fetched. The label is the class with most votes, of two the first, as in
    the URL benchmark; it differs from CIFAR-10's in 79 images.
    """

    votes: str = ""

    def samples(self) -> pa.Table:
        """List the 10,000 test images; classes are numbers, as votes are counted by them."""
        labels = self._counts.argmax(1)
        return pa.table(
            {
                "key": self._tested["key"],
                "class": [str(label) for label in labels],
                "name": [CLASSES[label] for label in labels],
                "split": self._tested["split"],
                "votes": list(self._counts),
            }
        )

    def image(self, row: int) -> tuple[str, bytes]:
        """Return the image as PNG."""
        return self._cifar10.image(self._first + row)

    @cached_property
    def _cifar10(self) -> Cifar10:
        return Cifar10()

    @cached_property
    def _first(self) -> int:
        """The row of `cifar10` that is the first test image."""
        return self._cifar10.samples()["split"].index("test").as_py()

    @cached_property
    def _tested(self) -> pa.Table:
        return self._cifar10.samples().slice(self._first)

    @cached_property
    def _counts(self) -> Int32[np.ndarray, "n 10"]:
        return _read(self._path, len(self._tested))

    @property
    def _path(self) -> Path:
        if self.votes:
            return Path(self.votes).expanduser()
        return fetch(URL, packages.cache() / "cifar10h-counts.npy", SHA256)


def _read(path: Path, images: int) -> Int32[np.ndarray, "n 10"]:
    """Read the counts.

    Raises:
        OSError: there is no such file.
        ValueError: it holds anything but counts, with a vote at least for each image.
    """
    try:
        counts = np.load(path, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"expected an array of counts (.npy) in {path}, got {error}") from error
    shape = (images, len(CLASSES))
    if not isinstance(counts, np.ndarray) or counts.shape != shape or counts.dtype.kind not in "iu":
        got = f"{counts.dtype} {counts.shape}" if isinstance(counts, np.ndarray) else "an archive"
        raise ValueError(f"expected whole numbers {shape} in {path}, got {got}: give votes= counts")
    voteless = np.flatnonzero(counts.sum(1) == 0)
    if counts.min() < 0 or counts.max() > np.iinfo(np.int32).max or len(voteless):
        got = f"none in row {voteless[0]}" if len(voteless) else f"{counts.min()}..{counts.max()}"
        raise ValueError(f"expected the votes of people in {path}, got {got}: give votes= counts")
    return counts.astype(np.int32)
