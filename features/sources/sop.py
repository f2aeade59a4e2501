"""Stanford Online Products: 120,053 photos of 22,634 things that were for sale in 12 categories.

Song et al., "Deep Metric Learning via Lifted Structured Feature Embedding", 2016.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from askance.features.sources.archive import check_whole, find
from askance.features.sources.class_halves import splits_of_test
from askance.features.sources.listed import Listed

CLASSES, IMAGES = 22_634, 120_053
HEADER = "image_id class_id super_class_id path"
GET = (
    "get Stanford_Online_Products.zip from https://cvgl.stanford.edu/projects/lifted_struct/ (it"
    " can't be downloaded for you), unpack it, and give its folder as path="
)


@dataclass(frozen=True)
class Product:
    """A line of an official list: a photo, its class (from 0) and its category."""

    file: str
    number: int
    category: int

    @property
    def name(self) -> str:
        """The category and eBay's number of the thing: bicycle/111085122871."""
        folder, _, file = self.file.partition("/")
        return f"{folder.removesuffix('_final')}/{file.partition('_')[0]}"


@dataclass(frozen=True)
class Sop:
    """The archive's folder, or one with its pictures under `images` and lists in `Info_Files`.

    A class is a product: a number from 0, and a name such as `bicycle/111085122871`. The split
    `test` is the official one; of the official training classes, the first half of each category
    (by number) is `train` and the rest `val`. With `test=halves`, `trainontest` and `testontest`
    are instead of `test`.
    """

    path: str
    test: str = "whole"

    def samples(self) -> pa.Table:
        """List the images, in the order of the official lists: of training, then of test.

        Raises:
            ValueError: no folder, a list that can't be read, or not all images.
        """
        training, testing = self._products
        table = self._images.samples()
        check_whole(table, CLASSES, IMAGES, self._images.by)
        table = table.append_column("name", pa.array([item.name for item in training + testing]))
        splits = _training(training) + _testing(testing, self.test)
        return table.append_column("split", pa.array(splits))

    def image(self, row: int) -> tuple[str, bytes]:
        """Return the file's bytes."""
        return self._images.image(row)

    @cached_property
    def _list(self) -> Path:
        folders = ["Stanford_Online_Products/", "Info_Files/", ""]
        return find(self.path, [f"{folder}Ebay_train.txt" for folder in folders], GET)

    @cached_property
    def _products(self) -> tuple[list[Product], list[Product]]:
        return _read(self._list), _read(self._list.with_name("Ebay_test.txt"))

    @cached_property
    def _images(self) -> Listed:
        products = [item for part in self._products for item in part]
        files = tuple(item.file for item in products)
        classes = tuple(str(item.number) for item in products)
        folder = self._list.parent
        root = folder.with_name("images") if folder.name == "Info_Files" else folder
        return Listed(root, files, classes, folder)


def _read(path: Path) -> list[Product]:
    if not path.is_file():
        raise ValueError(f"expected the list {path}, got no such file: {GET}")
    header, *lines = path.read_text().splitlines() or [""]
    if header.split() != HEADER.split():
        raise ValueError(f"expected the header {HEADER!r} in {path}, got {header[:80]!r}: {GET}")
    products = []
    for number, line in enumerate(lines, 2):
        words = line.split(maxsplit=3)
        if len(words) != 4 or not all(word.isdecimal() for word in words[:3]):
            raise ValueError(
                f"expected {HEADER!r} in line {number} of {path}, got {line[:80]!r}: {GET}"
            )
        products.append(Product(words[3], int(words[1]) - 1, int(words[2])))
    return products


def _training(products: list[Product]) -> list[str]:
    """Return the splits of the official training images, by halves of each category's classes."""
    classes = defaultdict[int, set[int]](set)
    for item in products:
        classes[item.category].add(item.number)
    train = {number for found in classes.values() for number in sorted(found)[: len(found) // 2]}
    return ["train" if item.number in train else "val" for item in products]


def _testing(products: list[Product], test: str) -> list[str]:
    """Return the splits of the official test images, each class's in the order of the list."""
    counts = Counter(item.number for item in products)
    splits = {number: iter(splits_of_test(count, test)) for number, count in counts.items()}
    return [next(splits[item.number]) for item in products]
