"""What the report's script draws: curves, bins, points and pictures of each set, as plain lists.

Comes in: what evaluate and map wrote, and the prepared sets. Goes out: the page's data, and a
mosaic of each set's pictures.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int

from askance.eval.calibration import calibration
from askance.features.index import Index, read_index
from askance.pipeline.seeding import generator
from askance.stages.pictures import Json, Mosaic, check_row, class_name, mosaic


class Scene(NamedTuple):
    """A set as the script draws it, and its pictures."""

    data: Json
    mosaic: Mosaic


def choices(heads: list[Json]) -> list[str]:
    """Return the heads that can be looked at, the main one first, which the notes are about.

    They have the neighbours that are pictured, the frozen embedding's; where no head has them, the
    first asked for stands alone.
    """
    own = [head for head in heads if not head.get("reference")]
    return [head["name"] for head in own if not head["mapped"]] or [own[0]["name"]]


def read_scene(
    queries: Path, data: Path, plane: Path, heads: list[str], *, ends: int, limit: int
) -> Scene:
    """Read a set: QUERIES of evaluate, the prepared set DATA, its map PLANE where there is one.

    Pictures are of `limit` images at most; `shown` says which. Numbers are shares from 0 to 1,
    places on the map without a unit; what is undefined is None.

    Raises:
        ValueError: a result is of another preparation of the set.
    """
    table, index = pq.read_table(queries), read_index(data)
    wrong = ~table["hit"].to_numpy()
    percentiles = {head: table[f"percentile/{head}"].to_numpy() for head in heads}
    x, y = _places(plane, table["row"].to_numpy())
    # Far from upstream many rows share the last percentile: in their own order, often one class.
    lot = generator("report", data.name).permutation(len(table))
    orders = {head: certain_first(each, lot) for head, each in percentiles.items()}
    strangers = len(np.setdiff1d(table["neighbour"].to_numpy(), table["row"].to_numpy()))
    rows = shown(lot, [*orders.values()], np.isfinite(x), strangers, ends=ends, limit=limit)
    pairs = table.take(rows)
    pictures = mosaic(index, _rows(index, pairs))
    classes = sorted(set(_classes(index, pairs["row"]) + _classes(index, pairs["neighbour"])))
    about = {
        "name": data.name,
        "images": len(table),
        "level": _short(wrong.mean()),
        "classes": classes,
        "calibration": {head: _bins(each, wrong) for head, each in percentiles.items()},
        "tenths": {head: _tenths(wrong[order]) for head, order in orders.items()},
        "mosaic": {"columns": pictures.columns, "rows": pictures.rows, "tiny": pictures.tiny},
        "pairs": _pairs(pairs, index, classes, pictures)
        | {"x": _rounded(x[rows], 2), "y": _rounded(y[rows], 2)}
        | {"percentile": {h: _rounded(each[rows], 4) for h, each in percentiles.items()}},
    }
    return Scene(about, pictures)


def curves(name: str, points: list[Json]) -> Json:
    """Return the coverages of a set's risk-coverage curves, and each head's risks at them."""
    risks: dict[str, list[float | None]] = {}
    coverage = []
    for point in (point for point in points if point["set"] == name):
        risks.setdefault(point["head"], []).append(point["risk"])
        if len(risks) == 1:
            coverage.append(point["coverage"])
    return {
        "coverage": _rounded(coverage, 4),
        "risk": {head: _rounded(each, 4) for head, each in risks.items()},
    }


def certain_first(
    percentile: Float[np.ndarray, " n"], lot: Int[np.ndarray, " n"]
) -> Int[np.ndarray, " defined"]:
    """Return the rows by rising percentile, without NaN; ties in the order of the lot."""
    order = lot[percentile[lot].argsort(kind="stable")]
    return order[np.isfinite(percentile[order])]


def shown(
    lot: Int[np.ndarray, " n"],
    orders: list[Int[np.ndarray, " _"]],
    mapped: Bool[np.ndarray, " n"],
    strangers: int,
    *,
    ends: int,
    limit: int,
) -> Int[np.ndarray, " shown"]:
    """Return the rows whose pictures are shown, in the order of the lot.

    All where they, and the strangers among their neighbours, are no more than `limit`; else half as
    many as that, since each brings its neighbour: `ends` from either end of each head's order, then
    those on the map, then others.
    """
    if len(lot) + strangers <= limit:
        return lot
    extremes = [end[:ends] for order in orders for end in (order, order[::-1])]
    preferred = np.concatenate([*extremes, lot[mapped[lot]], lot])
    first = np.sort(np.unique(preferred, return_index=True)[1])
    return lot[np.isin(lot, preferred[first[: limit // 2]])]


def _places(plane: Path, rows: Int[np.ndarray, " n"]) -> Float[np.ndarray, "2 n"]:
    """Return each row's place on the map, NaN where it has none."""
    places = np.full((2, len(rows)), np.nan)
    if plane.is_file():
        table = pq.read_table(plane)
        _, own, theirs = np.intersect1d(rows, table["row"].to_numpy(), return_indices=True)
        places[:, own] = [table[axis].to_numpy()[theirs] for axis in ("x", "y")]
    return places


def _rows(index: Index, pairs: pa.Table) -> Int[np.ndarray, " n"]:
    """Return the rows that pairs name, once each, after a look at whether they are the index's."""
    named: set[int] = set()
    for side in ("", "neighbour_"):
        rows = pairs["neighbour" if side else "row"].to_pylist()
        for row, key in zip(rows, pairs[f"{side}key"].to_pylist(), strict=True):
            if row >= 0:
                check_row(index, row, key)
                named.add(row)
    return np.array(sorted(named), np.int64)


def _classes(index: Index, rows: pa.ChunkedArray) -> list[str]:
    return [class_name(index, row) for row in rows.to_pylist() if row >= 0]


def _pairs(pairs: pa.Table, index: Index, classes: list[str], pictures: Mosaic) -> Json:
    """Return columns of the pairs; a class is its place in `classes`, a tile that in the mosaic."""
    numbers = {each: number for number, each in enumerate(classes)}

    def image(row: int, key: str) -> Json | None:
        if row < 0:
            return None
        label = numbers[class_name(index, row)]
        return {"key": key, "label": label, "tile": pictures.places.get(row, -1)}

    names = ("row", "key"), ("neighbour", "neighbour_key")
    query, neighbour = (
        [image(*each) for each in zip(*(pairs[n].to_pylist() for n in pair), strict=True)]
        for pair in names
    )
    return {
        "query": query,
        "neighbour": neighbour,
        "hit": pairs["hit"].to_pylist(),
        "similarity": _rounded(pairs["similarity"].to_numpy(), 3),
    }


def _bins(percentile: Float[np.ndarray, " n"], wrong: Bool[np.ndarray, " n"]) -> list[Json]:
    return [
        {name: _short(number) for name, number in each._asdict().items()}
        for each in calibration(percentile, wrong)
    ]


def _tenths(wrong: Bool[np.ndarray, " n"]) -> list[float] | None:
    """Return the shares wrong of the first and the last tenth; None of fewer than ten."""
    tenth = len(wrong) // 10
    return [float(end.mean()) for end in (wrong[:tenth], wrong[-tenth:])] if tenth else None


def _rounded(numbers: Iterable[float | int | None], digits: int) -> list[float | None]:
    """Return numbers as short as JSON needs them; what isn't finite is None."""
    return [_short(each, digits) for each in numbers]


def _short(number: float | int | None, digits: int = 4) -> float | None:
    return None if number is None or not math.isfinite(number) else round(float(number), digits)
