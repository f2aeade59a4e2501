"""Stanford Cars (CARS196): 16,185 photos of 196 models of cars, out of a folder of the user's.

Krause et al., "3D Object Representations for Fine-Grained Categorization", 2013.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from askance.features.sources.archive import check_whole, find
from askance.features.sources.class_halves import class_halves
from askance.features.sources.folder import Folder
from askance.features.sources.listed import Listed

CLASSES, IMAGES = 196, 16_185
BIRD = re.compile(r"[0-9]+[.][A-Z]")
ALL, TRAIN = "cars_annos.mat", "devkit/cars_train_annos.mat"
TEST = ["cars_test_annos_withlabels.mat", "devkit/cars_test_annos_withlabels.mat"]
GET = (
    "the official page is gone and nothing can be downloaded for you; get car_ims.tgz with"
    " cars_annos.mat, or cars_train, cars_test and devkit (with cars_test_annos_withlabels.mat), or"
    " a copy with a folder per class, unpack it, and give its folder as path="
)


@dataclass(frozen=True)
class Cars:
    """A folder with `cars_annos.mat`, or with `devkit`, or with class folders (under `images`).

    The splits are `train`, `val` and `test` by halves of the classes, sorted by name; with
    `test=halves`, `trainontest` and `testontest` instead of `test`.
    """

    path: str
    test: str = "whole"

    def samples(self) -> pa.Table:
        """List the images, sorted by path.

        Raises:
            ValueError: no folder, classes of another data set, or not all of this one.
        """
        table = self._images.samples()
        classes = table["class"].to_pylist()
        ordered = sorted(set(classes))
        if birds := [name for name in ordered if BIRD.match(name)]:
            raise ValueError(
                f"expected cars, in folders such as 'BMW 3 Series Wagon 2012', in {self.path}, got"
                f" {birds[0]!r}: if these are birds (the benchmark's README draws the two sets in"
                " each other's folders), give this path to the source cub"
            )
        check_whole(table, CLASSES, IMAGES, Path(self.path))
        return table.append_column("split", pa.array(class_halves(classes, ordered, self.test)))

    def image(self, row: int) -> tuple[str, bytes]:
        """Return the file's bytes."""
        return self._images.image(row)

    @cached_property
    def _images(self) -> Folder | Listed:
        found = find(self.path, [ALL, TRAIN, "images", "."], GET)
        if found.name == ALL:
            return _listed(found.parent, {found: ("", "relative_im_path")}, found)
        if found.name == Path(TRAIN).name:
            root = found.parents[1]
            lists = {found: ("cars_train/", "fname")}
            lists[find(str(root), TEST, GET)] = ("cars_test/", "fname")
            return _listed(root, lists, found.with_name("cars_meta.mat"))
        return Folder(str(found))


def _listed(root: Path, lists: dict[Path, tuple[str, str]], names: Path) -> Listed:
    """Read annotations: {file: its images' folder and the field of their path}, and class names."""
    called = [name.replace("/", "-") for name in _read(names, "class_names")]  # Ram C/V
    found = {
        folder + str(image[field]): called[int(image["class"]) - 1]
        for path, (folder, field) in lists.items()
        for image in _read(path, "annotations")
    }
    files = tuple(sorted(found))
    return Listed(root, files, tuple(found[file] for file in files), names)


def _read(path: Path, what: str) -> Any:  # noqa: ANN401 - scipy's records
    from scipy.io import loadmat

    try:
        return loadmat(path, squeeze_me=True)[what]
    except Exception as error:  # a damaged file can fail anywhere
        raise ValueError(f"expected {what} in {path}, got {error}: {GET}") from error
