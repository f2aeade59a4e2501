"""Unpacked archives: where in a user's folder their images lie, and whether all are there."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc


def find(path: str, marks: Sequence[str], get: str) -> Path:
    """Return the first of `marks`, paths below `path`, that is there.

    Raises:
        ValueError: none is; `get` says where the archive comes from.
    """
    root = Path(path).expanduser()
    found = [root / mark for mark in marks if (root / mark).exists()]
    if not found:
        got = f"{root} without any of them" if root.is_dir() else "no such folder"
        places = " or ".join(str(root / mark) for mark in marks)
        raise ValueError(f"expected {places}, got {got}: {get}")
    return found[0]


def check_whole(table: pa.Table, classes: int, images: int, where: Path) -> None:
    """Check that all of a data set is there: with a part of it the splits would be others.

    Raises:
        ValueError: another number of classes or images.
    """
    got = len(pc.unique(table["class"])), len(table)
    if got != (classes, images):
        raise ValueError(
            f"expected {images:,} images of {classes:,} classes in {where}, got {got[1]:,} of"
            f" {got[0]:,}: unpack the archive again (of a part of it, without its splits, a set is"
            " made by the source folder)"
        )
