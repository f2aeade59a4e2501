"""Images of a local folder that an archive's own list names: their paths, and a class each."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from askance.features.shards import UNSAFE


@dataclass(frozen=True)
class Listed:
    """The images `files`, paths below `root`, of the classes `classes`; `by` is the list's place.

    The key is the path without the extension, with `_` for dots, as in a `Folder`. The list may
    come from anywhere and must stay below `root`; links in `root` are its owner's, and followed.

    Raises:
        ValueError: a path that leaves `root`.
    """

    root: Path
    files: tuple[str, ...]
    classes: tuple[str, ...]
    by: Path

    def __post_init__(self) -> None:
        """Refuse paths that leave the folder, by the rule for the members of shards."""
        if outside := [file for file in self.files if UNSAFE.search(file)]:
            raise ValueError(
                f"expected images below {self.root}, got the path {outside[0][:80]!r} in the list"
                f" {self.by}: get the archive again, from its publisher"
            )

    def samples(self) -> pa.Table:
        """List the images, in the order given.

        Raises:
            ValueError: one isn't there.
        """
        missing = [file for file in self.files if not (self.root / file).is_file()]
        if missing:
            raise ValueError(
                f"expected the {len(self.files):,} images that {self.by} lists, got no"
                f" {self.root / missing[0]} ({len(missing):,} missing): unpack the archive again"
            )
        keys = [str(Path(file).with_suffix("")).replace(".", "_") for file in self.files]
        schema = pa.schema([("key", pa.string()), ("class", pa.string())])
        return pa.table({"key": keys, "class": self.classes}, schema)

    def image(self, row: int) -> tuple[str, bytes]:
        """Return the file's bytes."""
        path = self.root / self.files[row]
        return path.suffix[1:].lower(), path.read_bytes()
