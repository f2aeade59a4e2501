"""A data set of your own: arrays in one .npz file, in the layout of MedMNIST.

python docs/extending/source.py prepare data/mine --source "npz path=mine.npz split=test"
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from askance.features.sources import SOURCES, png

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Npz:
    """The arrays `<split>_images` and `<split>_labels`: levels from 0 to 255, grey or RGB; numbers.

    Splits that are not in the file are left out. The key is the split and the place in it.
    """

    path: str

    def samples(self) -> pa.Table:
        """List the images, split by split; a label is the number in the file.

        Raises:
            ValueError: no split, or one without as many labels as images.
        """
        table = {"key": [], "class": [], "split": []}
        for split in self._splits:
            images, labels = (self._arrays.get(f"{split}_{name}") for name in ("images", "labels"))
            if labels is None or labels.size != len(images):
                raise ValueError(
                    f"expected {len(images)} labels in {split}_labels of {self.path}, got"
                    f" {0 if labels is None else labels.size}"
                )
            table["key"] += [f"{split}/{place:06}" for place in range(len(images))]
            table["class"] += [str(int(label)) for label in labels.ravel()]
            table["split"] += [split] * len(images)
        if not table["key"]:
            raise ValueError(f"expected train_images, val_images or test_images in {self.path}")
        return pa.table(table)

    def image(self, row: int) -> tuple[str, bytes]:
        """Return the image as PNG: no level is lost."""
        for split in self._splits:
            images = self._arrays[f"{split}_images"]
            if row < len(images):
                return "png", png.encode(images[row])
            row -= len(images)
        raise IndexError(f"no row {row}")

    @property
    def _splits(self) -> list[str]:
        return [split for split in SPLITS if f"{split}_images" in self._arrays]

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray]:
        with np.load(self.path, allow_pickle=False) as file:  # a pickle would run its code
            return {name: file[name] for name in file.files}


SOURCES["npz"] = Npz

if __name__ == "__main__":
    from askance.__main__ import main

    main()
