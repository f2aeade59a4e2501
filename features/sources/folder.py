"""A folder of pictures: one sub-folder per class, packed byte for byte."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa

from askance.features.shards import IMAGES


@dataclass(frozen=True)
class Folder:
    """The images under `path`/<class>/, at any depth; hidden files and folders are left out.

    The key is the path below `path` without the extension, with `_` for dots (a key ends at its
    first dot).
    """

    path: str

    def samples(self) -> pa.Table:
        """List the images, sorted by path.

        Raises:
            ValueError: no folder, no image, one without a class, or two with one key.
        """
        if not self._root.is_dir():
            raise ValueError(f"expected a folder of images, got no folder {self._root}")
        if not self._images:
            raise ValueError(
                f"expected images ({', '.join(sorted(IMAGES))}) in sub-folders of {self._root}, one"
                " sub-folder per class, got none"
            )
        keys = [str(path.with_suffix("")).replace(".", "_") for path in self._images]
        files = dict(zip(keys, self._images, strict=True))
        for key, path in zip(keys, self._images, strict=True):
            if len(path.parts) == 1:
                raise ValueError(
                    f"expected a sub-folder per class, got the image {self._root / path} outside of"
                    " any: move it into its class"
                )
            if files[key] != path:
                raise ValueError(
                    f"expected one image per key, got two with the key {key!r}:"
                    f" {self._root / path} and {self._root / files[key]}: rename one"
                )
        return pa.table({"key": keys, "class": [path.parts[0] for path in self._images]})

    def image(self, row: int) -> tuple[str, bytes]:
        """Return the file's bytes."""
        path = self._root / self._images[row]
        return path.suffix[1:].lower(), path.read_bytes()

    @cached_property
    def _root(self) -> Path:
        return Path(self.path).expanduser()

    @cached_property
    def _images(self) -> list[Path]:
        found = (path.relative_to(self._root) for path in self._root.rglob("*") if path.is_file())
        return sorted(
            path
            for path in found
            if path.suffix[1:].lower() in IMAGES and not any(p.startswith(".") for p in path.parts)
        )
