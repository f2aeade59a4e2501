"""A contact sheet of scored images: one page that needs nothing beside it.

Comes in: the table of scores, and where the images lie. Goes out: thumbnails with key, uncertainty
and percentile, which the page sorts and filters.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from jaxtyping import Float, Int64

from askance.features.reader import images
from askance.pipeline.artifacts import atomic
from askance.pipeline.progress import progress
from askance.stages.pictures import thumbnail

SHOWN, SIDE = 600, 144  # thumbnails, and their pixels: a page of a few megabytes
PAGE = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
)


class Tile(NamedTuple):
    """An image of the sheet; its address is "" where it can't be read any more."""

    key: str
    uncertainty: float
    percentile: float | None
    address: str


def write_sheet(out: Path, files: list[Path], listing: pa.Table, about: dict[str, Any]) -> None:
    """Write the page: the most uncertain first; of many images those at both ends.

    Args:
        out: the page.
        files: Parquet files of scores, a row per image of the listing.
        listing: where the images lie, as `features.listing` has it.
        about: what the page says of the model: backbone and head.

    Raises:
        OSError: the page can't be written, or an object store fails.
    """
    scores = ds.dataset([str(file) for file in files])
    uncertainty = scores.to_table(["uncertainty"])["uncertainty"].to_numpy()
    rows = pa.array(ends(uncertainty, SHOWN))
    found = scores.take(rows, columns=["key", "uncertainty", "percentile"]).to_pylist()
    with progress(f"draw {out.name}", len(rows), "images") as advance:
        tiles = []
        for row, address in zip(found, _addresses(listing.take(rows)), strict=True):
            tiles.append(Tile(**row, address=address))
            advance(1)
    text = PAGE.get_template("sheet.html").render(
        about=about,
        tiles=tiles,
        images=len(uncertainty),
        refused=int(np.isnan(uncertainty).sum()),
    )
    with atomic(out) as temporary:
        temporary.write_text(text, encoding="utf-8")


def ends(uncertainty: Float[np.ndarray, " n"], most: int) -> Int64[np.ndarray, " m"]:
    """Return the rows by falling uncertainty, ties by row, without NaN.

    Of more than `most`, one half from either end.
    """
    order = np.argsort(-uncertainty, kind="stable")
    order = order[: np.isfinite(uncertainty).sum()]  # NaN is sorted last
    if len(order) <= most:
        return order
    return np.concatenate([order[: most // 2], order[-(most // 2) :]])


def _addresses(samples: pa.Table) -> Iterator[str]:
    for _, content in images([samples]):
        try:
            yield thumbnail(content, SIDE) if isinstance(content, bytes) else ""
        except ValueError:
            yield ""
