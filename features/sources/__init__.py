"""Sources: where a set's samples come from, behind one small interface.

A source is a frozen dataclass: its fields are its options. It lists its samples as a table; those
of a source that has no shards of its own are packed into tar shards by `sets`.
A new source is one file with such a class, and one line in `SOURCES`.
"""

from typing import Protocol, runtime_checkable

import pyarrow as pa

from askance.features.sources.cars import Cars
from askance.features.sources.cifar10 import Cifar10
from askance.features.sources.cifar10h import Cifar10h
from askance.features.sources.cifar100 import Cifar100
from askance.features.sources.cub import Cub
from askance.features.sources.digits import Digits
from askance.features.sources.emoji import Emoji
from askance.features.sources.folder import Folder
from askance.features.sources.imagenet21k import ImageNet21k
from askance.features.sources.orl import Orl
from askance.features.sources.shards import Shards
from askance.features.sources.soft import Benthic, Cifar10hFolds, Pig, Treeversity, Turkey
from askance.features.sources.sop import Sop
from askance.features.sources.svhn import Svhn
from askance.features.sources.vtab import Caltech101, Dtd, Flowers102, Pets, Resisc45, Sun397


@runtime_checkable
class Source(Protocol):
    """A named collection of labelled images."""

    def samples(self) -> pa.Table:
        """List all samples, without rendering or decoding one: filters act on the list first.

        Columns: `key`, `class` (a name, or a number as text) and, where there is more to say,
        `name` (of the class, where `class` is a number), `split`, `votes`, and for images that
        already lie in shards `shard`, `position`, `offset` and `size`, as in the index.
        """
        ...

    def image(self, row: int) -> tuple[str, bytes]:
        """Return the extension and the encoded bytes of row `row` of the full listing.

        Never asked of a source whose images already lie in shards.
        """
        ...


SOURCES: dict[str, type[Source]] = {
    "benthic": Benthic,
    "caltech101": Caltech101,
    "cars": Cars,
    "cifar10": Cifar10,
    "cifar100": Cifar100,
    "cifar10h": Cifar10h,
    "cifar10h-folds": Cifar10hFolds,
    "cub": Cub,
    "digits": Digits,
    "dtd": Dtd,
    "emoji": Emoji,
    "flowers102": Flowers102,
    "folder": Folder,
    "imagenet21k": ImageNet21k,
    "orl": Orl,
    "pets": Pets,
    "pig": Pig,
    "resisc45": Resisc45,
    "shards": Shards,
    "sop": Sop,
    "sun397": Sun397,
    "svhn": Svhn,
    "treeversity": Treeversity,
    "turkey": Turkey,
}
