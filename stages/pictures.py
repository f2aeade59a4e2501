"""Pictures for the report: the images at both ends of the uncertainty, and those curate found.

Comes in: tables that name images by row and key, and the prepared sets. Goes out: thumbnails as
data addresses, with what the page says of each.
"""

import base64
import io
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from jaxtyping import Float, Int

from askance.features.index import Index, read_index
from askance.features.reader import image
from askance.features.views import decode
from askance.pipeline.artifacts import read_json
from askance.pipeline.seeding import generator

THUMBNAIL, TINY = 96, 48  # pixels: the longest side kept; below the other, shown as squares

Json = dict[str, Any]


class Picture(NamedTuple):
    """An image as a data address, "" where it can't be read."""

    key: str
    label: str
    address: str


class Pair(NamedTuple):
    """A query, what it retrieved, and its uncertainty's rank among the upstream images."""

    query: Picture
    neighbour: Picture
    percentile: float
    hit: bool


class Gallery(NamedTuple):
    """A set's most and least certain images, and the share wrong in the tenth at either end."""

    certain: list[Pair]
    uncertain: list[Pair]
    wrong: tuple[float, float]


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


def read_gallery(queries: Path, data: Path, head: str, count: int) -> Gallery:
    """Read the queries of the set DATA, and the pictures at both ends."""
    table, index = pq.read_table(queries), read_index(data)
    order = certain_first(table[f"percentile/{head}"].to_numpy(), data.name)
    wrong = 1 - table["hit"].to_numpy()[order]
    shown, tenth = min(count, (len(order) + 1) // 2), len(order) // 10
    certain, uncertain = (
        [_pair(index, query, head) for query in table.take(end[:shown]).to_pylist()]
        for end in (order, order[::-1])
    )
    shares = (wrong[:tenth].mean(), wrong[-tenth:].mean()) if tenth else (math.nan, math.nan)
    return Gallery(certain, uncertain, shares)


def certain_first(percentile: Float[np.ndarray, " n"], name: str) -> Int[np.ndarray, " defined"]:
    """Return the rows by rising percentile, without NaN; ties in a random order fixed by `name`."""
    # Far from upstream many rows share the last percentile: in their own order, often one class.
    shuffled = generator("report", name).permutation(len(percentile))
    order = shuffled[percentile[shuffled].argsort(kind="stable")]
    return order[np.isfinite(percentile[order])]


def _pair(index: Index, query: Json, head: str) -> Pair:
    own = _picture(index, query["row"], query["key"])
    neighbour = _picture(index, query["neighbour"], query["neighbour_key"])
    return Pair(own, neighbour, query[f"percentile/{head}"], query["hit"])


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
    if row < 0:
        return Picture("no other image", "", "")
    if row >= len(index) or index.keys[row] != key:
        raise ValueError(
            f"expected {key!r} in row {row} of {index.folder}: run evaluate and curate again"
        )
    try:
        address = thumbnail(image(index, row))
    except (ValueError, OSError):
        address = ""
    label = int(index.labels[row])
    return Picture(key, index.classes.get(label, f"class {label}"), address)


def thumbnail(content: bytes, side: int = THUMBNAIL) -> str:
    """Return an encoded image as a small data address: a tiny one as PNG, others as JPEG.

    `side` is the longest that is kept, in pixels.
    """
    image = decode(content)
    sink, kind = io.BytesIO(), "png" if max(image.size) < TINY else "jpeg"
    image.thumbnail((side, side))
    image.save(sink, kind, optimize=True, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(sink.getvalue()).decode()}"
