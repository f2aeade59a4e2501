"""Pictures for the report: a mosaic of each set, and the images that curate found.

Comes in: tables that name images by row and key, and the prepared sets. Goes out: pictures as data
addresses, with what the page says of each.
"""

import base64
import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Int
from PIL import Image, ImageOps

from askance.features.blocks import plan, task
from askance.features.index import Index, read_index
from askance.features.reader import image, images
from askance.features.views import decode
from askance.pipeline.artifacts import read_json

THUMBNAIL, TILE = 96, 64  # pixels: the longest side kept, of a picture alone and in a mosaic
TINY = 48  # pixels: below, each is shown as a square
QUALITY = 75  # of a mosaic's WebP
BLOCK = 4096  # rows whose places are looked up at a time

Json = dict[str, Any]


class Picture(NamedTuple):
    """An image as a data address, "" where it can't be read."""

    key: str
    label: str
    address: str


class Mosaic(NamedTuple):
    """Pictures of a set in one, row by row; `places` has those that can be read."""

    address: str
    columns: int
    rows: int
    places: dict[int, int]  # of each row of the index
    tiny: bool


class Suspect(NamedTuple):
    """An image whose label a classifier doubts; `about` is its row of curate's summary."""

    image: Picture
    about: Json


class Twins(NamedTuple):
    """Two near-duplicates, and the cosine between them."""

    images: tuple[Picture, Picture]
    similarity: float


class Finds(NamedTuple):
    """What curate found in a set: its counts and classes, suspect labels, twins of two labels."""

    about: Json
    suspects: list[Suspect]
    twins: list[Twins]


class Curation(NamedTuple):
    """What curate found; `about` has the head and the thresholds."""

    about: Json
    sets: list[Finds]


def mosaic(index: Index, rows: Int[np.ndarray, " n"]) -> Mosaic:
    """Put the pictures of some rows of a prepared set into one; `rows` ascend.

    Where the largest is tiny, they keep their size and every pixel; else each fills a square of
    `TILE` pixels.
    """
    tables = (
        samples.filter(pc.is_in(samples["row"], pa.array(rows)))
        for samples in (task(index, block).samples for block in plan(len(index), BLOCK))
    )
    pictures = [_small(content) for _, content in images(tables)]
    found = [(row, each) for row, each in zip(rows.tolist(), pictures, strict=True) if each]
    largest = max((max(each.size) for _, each in found), default=1)
    tiny, side = largest < TINY, largest if largest < TINY else TILE
    columns = max(1, math.ceil(math.sqrt(len(found))))
    lines = max(1, math.ceil(len(found) / columns))
    sheet = Image.new("RGBA", (columns * side, lines * side))
    for place, (_, each) in enumerate(found):
        tile = each if tiny else _filling(each)
        left, top = place % columns * side, place // columns * side
        sheet.paste(tile, (left + (side - tile.width) // 2, top + (side - tile.height) // 2))
    sink = io.BytesIO()
    sheet.save(sink, "webp", lossless=tiny, quality=QUALITY)
    places = {row: place for place, (row, _) in enumerate(found)}
    return Mosaic(_address("webp", sink.getvalue()), columns, lines, places, tiny)


def _small(content: bytes | str) -> Image.Image | None:
    """Return a picture of `TILE` pixels at most; None of one that can't be read."""
    if isinstance(content, str):
        return None
    try:
        picture = decode(content)
    except ValueError:
        return None
    picture.thumbnail((TILE, TILE))
    return picture


def _filling(picture: Image.Image) -> Image.Image:
    return ImageOps.contain(picture, (TILE, TILE), Image.Resampling.NEAREST)


def read_curation(path: Path, data: Path, count: int) -> Curation | None:
    """Read curate's summary, with up to `count` pictures a list; None where it never ran."""
    if not path.is_file():
        return None
    about = read_json(path)
    return Curation(about, [_finds(each, data / each["name"], count) for each in about["sets"]])


def _finds(about: Json, data: Path, count: int) -> Finds:
    index, lists = read_index(data), about["lists"]
    suspects = [*lists.get("mislabelled", []), *lists.get("both", [])]  # clear images first
    twins = [pair for pair in lists["pairs"] if pair["cross_label"]]
    return Finds(
        about,
        [Suspect(_picture(index, s["row"], s["key"]), s) for s in suspects[:count]],
        [_twins(index, pair) for pair in twins[:count]],
    )


def _twins(index: Index, pair: Json) -> Twins:
    first, second = (
        _picture(index, pair[f"{side}_row"], pair[f"{side}_key"]) for side in ("first", "second")
    )
    return Twins((first, second), pair["similarity"])


def _picture(index: Index, row: int, key: str) -> Picture:
    check_row(index, row, key)
    try:
        address = thumbnail(image(index, row))
    except (ValueError, OSError):
        address = ""
    return Picture(key, class_name(index, row), address)


def check_row(index: Index, row: int, key: str) -> None:
    """Check that a result is of this preparation of its set.

    Raises:
        ValueError: another image stands in this row.
    """
    if row >= len(index) or index.keys[row] != key:
        raise ValueError(
            f"expected {key!r} in row {row} of {index.folder}: run evaluate and curate again"
        )


def class_name(index: Index, row: int) -> str:
    """Return the name of a row's class."""
    label = int(index.labels[row])
    return index.classes.get(label, f"class {label}")


def thumbnail(content: bytes, side: int = THUMBNAIL) -> str:
    """Return an encoded image as a small data address: a tiny one as PNG, others as JPEG.

    `side` is the longest that is kept, in pixels.
    """
    picture = decode(content)
    sink, kind = io.BytesIO(), "png" if max(picture.size) < TINY else "jpeg"
    picture.thumbnail((side, side))
    picture.save(sink, kind, optimize=True, quality=85)
    return _address(kind, sink.getvalue())


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
