"""VTAB's image sets that are folders of files, with VTAB's splits `train`, `val` and `test`.

The files are packed byte for byte. The test split is the publisher's where there is one, and with
it VTAB's; training and validation are VTAB's too, but for Caltech-101 (see there).
"""

from collections.abc import Iterable, Iterator
from functools import cached_property
from itertools import groupby
from pathlib import PurePosixPath
from typing import ClassVar, NamedTuple

import pyarrow as pa

from askance.features import packages
from askance.features.sources.archive import check_whole
from askance.features.sources.listed import Listed
from askance.features.sources.published import Published
from askance.features.sources.tfds import deal
from askance.pipeline.seeding import generator


class Picture(NamedTuple):
    """An image's file, below the set's folder."""

    file: str
    label: str
    split: str


class Pictures(Published):
    """A set of image files; a subclass lists them, and says how many it has."""

    size: ClassVar[tuple[int, int]]  # classes, images

    def samples(self) -> pa.Table:
        """List the images.

        Raises:
            ValueError: the folder has another form, or not all images.
            OSError: the set could not be fetched.
        """
        table = self._listed.samples()
        check_whole(table, *self.size, self._root)
        splits = pa.array([picture.split for picture in self._pictures])
        return table.append_column("split", splits)

    def image(self, row: int) -> tuple[str, bytes]:
        """Return the file's bytes."""
        return self._listed.image(row)

    def pictures(self) -> Iterable[Picture]:
        """List the images."""
        raise NotImplementedError

    @cached_property
    def _pictures(self) -> list[Picture]:
        if found := list(self.pictures()):
            return found
        raise ValueError(
            f"expected {self.name} as its publisher packs it, got no image in {self._root}: unpack"
            " the archive again"
        )

    @cached_property
    def _listed(self) -> Listed:
        files, labels = ([p.file for p in self._pictures], [p.label for p in self._pictures])
        return Listed(self._root, tuple(files), tuple(labels), self._root)

    def _by_class(self, pattern: str) -> Iterator[tuple[str, list[str]]]:
        """Yield each class, the folder of its files, with these, sorted."""
        files = sorted(path.relative_to(self._root).as_posix() for path in self._root.glob(pattern))
        for folder, group in groupby(files, key=lambda file: PurePosixPath(file).parent.name):
            yield folder, list(group)

    def _lines(self, file: str) -> list[str]:
        return (self._root / file).read_text().splitlines()


class Caltech101(Pictures):
    """Caltech-101: 9,144 photos in 101 classes and one of clutter, `BACKGROUND_Google`.

    There is no published split: 30 images of each class, drawn by lot, are for training, 90 % of
    them `train` and the others `val`; the rest is `test`. VTAB's have the same sizes, but follow
    the order of files on the disk where they were drawn, which is not known.
    """

    name = "caltech101"
    size = (102, 9_144)
    files = (
        (
            "https://data.caltech.edu/records/mzrjq-6wc02/files/caltech-101.zip",
            "331234750fc7f77520e50d9565e8b6907b03565e30320da1401130db08c61f91",
        ),
    )
    inside = "caltech-101"
    holds = ("101_ObjectCategories",)

    def pictures(self) -> Iterator[Picture]:
        """List the images by class."""
        classes = dict(self._by_class("101_ObjectCategories/[!.]*/[!.]*.jpg"))
        drawn = []
        for files in classes.values():
            drawn += sorted(files, key=lambda f: generator("caltech101", f).random())[:30]
        keys = [file.partition("/")[2] for file in drawn]
        split = dict(zip(drawn, deal(keys, train=90, val=10), strict=True))
        for name, files in classes.items():
            yield from (Picture(file, name, split.get(file, "test")) for file in files)


class Dtd(Pictures):
    """The Describable Textures: 5,640 photos in 47 classes, split as its first partition says."""

    name = "dtd"
    size = (47, 5_640)
    files = (
        (
            "https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
            "e42855a52a4950a3b59612834602aa253914755c95b0cff9ead6d07395f8e205",
        ),
    )
    inside = "dtd"
    holds = ("images", "labels")

    def pictures(self) -> Iterator[Picture]:
        """List the images by split."""
        for split in ("train", "val", "test"):
            for line in self._lines(f"labels/{split}1.txt"):
                yield Picture(f"images/{line}", line.partition("/")[0], split)


class Flowers102(Pictures):
    """Oxford's flowers: 8,189 photos in 102 classes, which have numbers; its own split."""

    name = "flowers102"
    size = (102, 8_189)
    files = (
        (
            "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/102flowers.tgz",
            "2d01ecc807db462958cfe3d92f57a8c252b4abd240eb955770201e45f783b246",
        ),
        (
            "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/imagelabels.mat",
            "4903e94206bac23bf772aadf06451916df56b58fc483a62db32a97b82656651d",
        ),
        (
            "https://www.robots.ox.ac.uk/~vgg/data/flowers/102/setid.mat",
            "46b8678f91fd95d3c8f4feab80d271a6c834a1dd896fe29fd3e6ad9ce5c8dccd",
        ),
    )
    holds = ("jpg", "imagelabels.mat", "setid.mat")

    def pictures(self) -> Iterator[Picture]:
        """List the images by split; classes count from 0, those of the file from 1."""
        from scipy.io import loadmat

        labels = loadmat(self._root / "imagelabels.mat")["labels"].ravel()
        numbers = loadmat(self._root / "setid.mat")
        for split, name in {"train": "trnid", "val": "valid", "test": "tstid"}.items():
            for number in numbers[name].ravel():
                label = str(labels[number - 1] - 1)
                yield Picture(f"jpg/image_{number:05}.jpg", label, split)


class Pets(Pictures):
    """The Oxford-IIIT pets: 7,349 photos in 37 classes; 80 % of its `trainval` are `train`."""

    name = "pets"
    size = (37, 7_349)
    files = (
        (
            "https://thor.robots.ox.ac.uk/~vgg/data/pets/images.tar.gz",
            "67195c5e1c01f1ab5f9b6a5d22b8c27a580d896ece458917e61d459337fa318d",
        ),
        (
            "https://thor.robots.ox.ac.uk/~vgg/data/pets/annotations.tar.gz",
            "52425fb6de5c424942b7626b428656fcbd798db970a937df61750c0f1d358e91",
        ),
    )
    holds = ("images", "annotations")

    def pictures(self) -> Iterator[Picture]:
        """List the images of `trainval`, then those of `test`."""
        trained, tested = (self._names(split) for split in ("trainval", "test"))
        splits = deal(trained, train=80, val=20) + ["test"] * len(tested)
        for name, split in zip(trained + tested, splits, strict=True):
            yield Picture(f"images/{name}", name.rpartition("_")[0], split)

    def _names(self, split: str) -> list[str]:
        lines = self._lines(f"annotations/{split}.txt")
        return [f"{line.split()[0]}.jpg" for line in lines if line.strip()]


class Resisc45(Pictures):
    """NWPU-RESISC45: 31,500 pictures from the air in 45 classes; 60, 20 and 20 %.

    Its publisher shares it by hand only: unpack `NWPU-RESISC45.rar`, and give its folder as `path`.
    """

    name = "resisc45"
    size = (45, 31_500)

    def pictures(self) -> Iterator[Picture]:
        """List the images by class."""
        labelled = [
            (file, name) for name, files in self._by_class("[!.]*/[!.]*.jpg") for file in files
        ]
        keys = [file.replace("/", "_") for file, _ in labelled]
        splits = deal(keys, train=60, val=20, test=20)
        for (file, name), split in zip(labelled, splits, strict=True):
            yield Picture(file, name, split)


class Sun397(Pictures):
    """SUN397: 108,752 photos of scenes in 397 classes (37 GB), split as TensorFlow Datasets does.

    Its lists are read out of the PyPI package. VTAB sees smaller copies, of 120,000 pixels.
    """

    name = "sun397"
    size = (397, 108_752)
    files = (
        (
            "https://vision.princeton.edu/projects/2010/SUN/SUN397.tar.gz",
            "f404130965a7ad77bed5ececc71e720ab50f3cc1e1bb257257610d38f3b928ec",
        ),
    )
    inside = "SUN397"
    holds = ("ClassName.txt",)

    def pictures(self) -> Iterator[Picture]:
        """List the images by split; the class is the path below a folder for its first letter."""
        archive = packages.pypi("tensorflow-datasets", "4.9.10", TFDS_SHA256)
        for split, short in {"train": "tr", "val": "va", "test": "te"}.items():
            member = f"tensorflow_datasets/image_classification/sun397_tfds_{short}.txt"
            for line in packages.read(archive, member).decode().splitlines():
                file = PurePosixPath(line.removeprefix("/"))
                if str(file) not in DAMAGED:
                    yield Picture(str(file), "/".join(file.parts[1:-1]), split)


TFDS_SHA256 = "7ec065f0a628e28152b487ba9cbe72fa36d3854705d9f3abd04c6cf5d7a91527"
DAMAGED = {"t/track/outdoor/sun_aophkoiosslinihb.jpg"}  # TFDS leaves it out as well
