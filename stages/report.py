"""The results as one page: which images go wrong, and how well the uncertainty foretold it.

Comes in: what evaluate wrote (run.json, table.parquet, curves.json, queries/) and the prepared
sets, for their pictures. Goes out: report.html, one file that needs nothing beside it.
"""

import base64
import io
import math
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jinja2
import numpy as np
import pyarrow.parquet as pq
import typer
from jaxtyping import Float, Int
from markupsafe import Markup

from askance.eval.figures import (
    COLORS,
    MARKS,
    Estimate,
    Point,
    dots,
    marked,
    risk_coverage,
    styles,
    swatch,
)
from askance.features.index import Index, read_index
from askance.features.reader import image
from askance.features.views import decode
from askance.pipeline.artifacts import atomic, read_json
from askance.pipeline.command import command
from askance.pipeline.seeding import generator

THUMBNAIL, TINY = 96, 48  # pixels: the longest side kept; below the other, shown as squares
COIN = 0.5
PAGE = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)


class Cell(NamedTuple):
    """One number of the table; NaN is undefined, and `reason` says why."""

    value: float = math.nan
    lower: float = math.nan
    upper: float = math.nan
    sd: float = math.nan
    reason: str = "not measured"

    @property
    def standing(self) -> Literal["undefined", "above", "coin", "below"]:
        """Where an R-AUROC lies against one half, as far as its interval can tell."""
        if math.isnan(self.value):
            return "undefined"
        lower, upper = (self.value if math.isnan(x) else x for x in (self.lower, self.upper))
        return "above" if lower > COIN else "below" if upper < COIN else "coin"


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


Json = dict[str, Any]
Cells = defaultdict[tuple[str, str, str], Cell]  # by metric, head and set: means over seeds


def run(
    results: Annotated[Path, typer.Argument(help="the folder that evaluate wrote")],
    data: Annotated[Path, typer.Argument(help="the folder of prepared sets")],
    *,
    pictures: Annotated[int, typer.Option(min=1, help="of a set, at either end")] = 8,
) -> None:
    """Write RESULTS/report.html: the results as one page, with pictures of the sets in DATA."""
    about = read_json(_there(results / "run.json"))
    cells = read_cells(_there(results / "table.parquet"))
    curves = read_json(_there(results / "curves.json"))
    head, names = main_head(about["heads"]), [each["name"] for each in about["sets"]]
    galleries = {name: read_gallery(results, data, name, head, pictures) for name in names}
    with atomic(results / "report.html") as temporary:
        temporary.write_text(page(about, cells, curves, galleries), encoding="utf-8")
    shown = [p for g in galleries.values() for pair in g.certain + g.uncertain for p in pair[:2]]
    unreadable = sum(not picture.address for picture in shown)
    print(f"{results / 'report.html'}: {len(shown)} pictures, {unreadable} of them unreadable")


def page(run: Json, cells: Cells, curves: list[Json], galleries: dict[str, Gallery]) -> str:
    """Compose the page; its template, which also words the notes, is the only file read."""
    main, labels = main_head(run["heads"]), {head["name"]: marked(head) for head in run["heads"]}
    groups = grouped(run["heads"], cells)
    heads, references = groups[0] + groups[1], groups[2]
    strongest = sorted(heads, key=lambda head: (head != main, -_height(cells, head)))
    styled = styles([labels[head] for head in strongest], [labels[head] for head in references])
    looks = {labels[head]: styled[labels[head]] for head in heads + references}
    columns = [*galleries, "average"]
    estimates = [
        Estimate(c, labels[h], *cells["r_auroc", h, c][:3]) for c in columns for h in labels
    ]
    points = [Point(p["set"], labels[p["head"]], p["coverage"], p["risk"]) for p in curves]
    template = Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    return PAGE.from_string(template).render(
        run=run,
        about={head["name"]: head for head in run["heads"]},
        main=main,
        heads=heads,
        groups=groups,
        labels=labels,
        marks={mark: said for mark, said in MARKS.items() if mark in "".join(labels.values())},
        cells=cells,
        columns=columns,
        best={column: best(cells, heads, column) for column in columns},
        swatches={head: Markup(swatch(looks[label])) for head, label in labels.items()},
        colored=strongest[: len(COLORS)],
        grey=strongest[len(COLORS) :],
        dots=[Markup(dots(estimates, looks, column)) for column in columns],
        panels=[
            Markup(risk_coverage(points, looks, name, 1 - cells["r1", "", name].value))
            for name in galleries
        ],
        galleries=galleries,
    )


def main_head(heads: list[Json]) -> str:
    """Return the head that the notes and pictures are about: the first asked for.

    One with the neighbours of the frozen embedding, which are those pictured, comes before others.
    """
    own = [head for head in heads if not head.get("reference")]
    return min(own, key=lambda head: head["mapped"])["name"]


def grouped(heads: list[Json], cells: Cells) -> list[list[str]]:
    """Return trained heads, untrained ones and references, the highest average R-AUROC first."""
    ranked = sorted(heads, key=lambda head: -_height(cells, head["name"]))
    return [
        [head["name"] for head in ranked if head["trained"]],
        [head["name"] for head in ranked if not head["trained"] and not head.get("reference")],
        [head["name"] for head in ranked if head.get("reference")],
    ]


def _height(cells: Cells, head: str) -> float:
    """Return the average R-AUROC, below all others where undefined."""
    return float(np.nan_to_num(cells["r_auroc", head, "average"].value, nan=-1.0))


def best(cells: Cells, heads: list[str], column: str) -> str | None:
    """Return the head with the highest R-AUROC, if its whole interval lies above one half."""
    found = {head: cells["r_auroc", head, column] for head in heads}
    top = max(heads, key=lambda head: np.nan_to_num(found[head].value, nan=-1.0))
    return top if found[top].lower > COIN else None


def read_cells(path: Path) -> Cells:
    """Read the table; a row over all seeds (-1) counts before those of one."""
    rows = sorted(pq.read_table(path).to_pylist(), key=lambda row: -row["seed"])
    keys = [(row["metric"], row["head"], row["set"]) for row in rows]
    found = (Cell(*(row[field] for field in Cell._fields)) for row in rows)
    return defaultdict(Cell, zip(keys, found, strict=True))


def read_gallery(results: Path, data: Path, name: str, head: str, count: int) -> Gallery:
    """Read a set's queries, and the pictures at both ends."""
    queries = pq.read_table(_there(results / "queries" / f"{name}.parquet"))
    order = certain_first(queries[f"percentile/{head}"].to_numpy(), name)
    wrong = 1 - queries["hit"].to_numpy()[order]
    shown, tenth = min(count, (len(order) + 1) // 2), len(order) // 10
    index = read_index(data / name)
    certain, uncertain = (
        [_pair(index, query, head) for query in queries.take(end[:shown]).to_pylist()]
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


def _picture(index: Index, row: int, key: str) -> Picture:
    if row < 0:
        return Picture("no other image", "", "")
    if row >= len(index) or index.keys[row] != key:
        raise ValueError(f"expected {key!r} in row {row} of {index.folder}: run evaluate again")
    try:
        address = thumbnail(image(index, row))
    except (ValueError, OSError):
        address = ""
    label = int(index.labels[row])
    return Picture(key, index.classes.get(label, f"class {label}"), address)


def thumbnail(content: bytes) -> str:
    """Return an encoded image as a small data address: a tiny one as PNG, others as JPEG."""
    image = decode(content)
    sink, kind = io.BytesIO(), "png" if max(image.size) < TINY else "jpeg"
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(sink, kind, optimize=True, quality=85)
    return f"data:image/{kind};base64,{base64.b64encode(sink.getvalue()).decode()}"


def _there(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"expected the results of evaluate, got no {path}: run evaluate")
    return path


main = command(run)

if __name__ == "__main__":
    typer.run(main)
