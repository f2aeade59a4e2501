"""Sources: where a set's samples come from, behind one small interface.

A source is a frozen dataclass: its fields are its options. It lists its samples as a table; those
of a source that has no shards of its own are packed into tar shards by `sets`.
A new source is one file with such a class, and one line in `SOURCES`.
"""

from typing import Protocol, runtime_checkable

import pyarrow as pa

from askance.features.sources.cifar10 import Cifar10
from askance.features.sources.digits import Digits
from askance.features.sources.emoji import Emoji
from askance.features.sources.folder import Folder
from askance.features.sources.orl import Orl
from askance.features.sources.shards import Shards


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
    "cifar10": Cifar10,
    "digits": Digits,
    "emoji": Emoji,
    "folder": Folder,
    "orl": Orl,
    "shards": Shards,
}
