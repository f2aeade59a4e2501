"""CUB-200-2011: 11,788 photos of 200 species of birds, out of the folder of its archive.

Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from askance.features.sources.archive import check_whole, find
from askance.features.sources.class_halves import class_halves
from askance.features.sources.folder import Folder

CLASSES, IMAGES = 200, 11_788
NUMBER = re.compile(r"([0-9]+)[.]")
GET = (
    "get CUB_200_2011.tgz from https://www.vision.caltech.edu/datasets/cub_200_2011/ (it can't be"
    " downloaded for you), unpack it, and give its folder as path="
)


@dataclass(frozen=True)
class Cub:
    """The archive's folder, or one with its class folders under `images`, or these themselves.

    The splits are `train`, `val` and `test` by halves of the classes, in the order of their
    numbers; with `test=halves`, `trainontest` and `testontest` instead of `test`.
    """

    path: str
    test: str = "whole"

    def samples(self) -> pa.Table:
        """List the images, sorted by path.

        Raises:
            ValueError: no folder, classes of another data set, or not all of this one.
        """
        table = self._folder.samples()
        classes = table["class"].to_pylist()
        numbers = {name: _number(name, self._folder.path) for name in set(classes)}
        check_whole(table, CLASSES, IMAGES, Path(self._folder.path))
        splits = class_halves(classes, sorted(numbers, key=lambda name: numbers[name]), self.test)
        return table.append_column("split", pa.array(splits))

    def image(self, row: int) -> tuple[str, bytes]:
        """Return the file's bytes."""
        return self._folder.image(row)

    @cached_property
    def _folder(self) -> Folder:
        return Folder(str(find(self.path, ["CUB_200_2011/images", "images", "."], GET)))


def _number(name: str, where: str) -> int:
    found = NUMBER.match(name)
    if found is None:
        raise ValueError(
            f"expected birds, in folders such as 001.Black_footed_Albatross, in {where}, got"
            f" {name!r}: if these are cars (the benchmark's README draws the two sets in each"
            " other's folders), give this path to the source cars"
        )
    return int(found[1])
