"""Images of a local folder that an archive's own list names: their paths, and a class each."""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa


@dataclass(frozen=True)
class Listed:
    """The images `files`, paths below `root`, of the classes `classes`; `by` is the list's place.

    The key is the path without the extension, with `_` for dots, as in a `Folder`.
    """

    root: Path
    files: tuple[str, ...]
    classes: tuple[str, ...]
    by: Path

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
