"""Handwritten digits: 1,797 grey images of 8 x 8 pixels, which scikit-learn carries."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa

from askance.features.sources import png


@dataclass(frozen=True)
class Digits:
    """The test part of UCI's "optical recognition of handwritten digits"; no splits."""

    def samples(self) -> pa.Table:
        """List the images; the class is the digit."""
        labels = self._data.target
        keys = [f"{number:04}" for number in range(len(labels))]
        return pa.table({"key": keys, "class": [str(label) for label in labels]})

    def image(self, row: int) -> tuple[str, bytes]:
        """Return the image as PNG: its 17 grey levels, 0 to 16, are spread over 0 to 255."""
        levels = self._data.images[row]
        return "png", png.encode(np.round(levels * (255 / 16)).astype(np.uint8))

    @cached_property
    def _data(self) -> Any:  # noqa: ANN401 - scikit-learn's Bunch
        from sklearn.datasets import load_digits

        return load_digits()
