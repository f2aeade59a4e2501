"""The results as one page: which images go wrong, and how well the uncertainty foretold it.

Comes in: what evaluate wrote (run.json, table.parquet, curves.json, queries/), what curate wrote
where it ran, and the prepared sets, for their pictures. Goes out: report.html, one file that needs
nothing beside it.
"""

import math
from pathlib import Path
from typing import Annotated

import jinja2
import numpy as np
import typer
from markupsafe import Markup

from askance.eval.figures import (
    COIN,
    COLORS,
    MARKS,
    Dot,
    Point,
    Style,
    against,
    dots,
    marked,
    recall_by_share,
    risk_coverage,
    styles,
    swatch,
)
from askance.eval.summary import AVERAGE
from askance.pipeline.artifacts import atomic, read_json
from askance.pipeline.command import command
from askance.stages.pictures import Curation, Gallery, Json, read_curation, read_gallery
from askance.stages.tables import (
    Cells,
    Column,
    Kept,
    Table,
    agreements,
    human,
    kept,
    known,
    measures,
    read_cells,
    table,
    two_kinds,
)

CASES = styles(["safe queries", "safe gallery and queries", "safe gallery"], ["full"])
PAGE = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
)


def run(
    results: Annotated[Path, typer.Argument(help="the folder that evaluate wrote")],
    data: Annotated[Path, typer.Argument(help="the folder of prepared sets")],
    *,
    pictures: Annotated[int, typer.Option(min=1, help="of a set, in every row of them")] = 8,
) -> None:
    """Write RESULTS/report.html: the results as one page, with pictures of the sets in DATA."""
    about = read_json(_there(results / "run.json"))
    cells = read_cells(_there(results / "table.parquet"))
    curves = read_json(_there(results / "curves.json"))
    head, names = main_head(about["heads"]), [each["name"] for each in about["sets"]]
    queries = {name: _there(results / "queries" / f"{name}.parquet") for name in names}
    galleries = {n: read_gallery(path, data / n, head, pictures) for n, path in queries.items()}
    curation = read_curation(results / "curation" / "summary.json", data, pictures)
    text = page(about, cells, curves, galleries, curation)
    with atomic(results / "report.html") as temporary:
        temporary.write_text(text, encoding="utf-8")
    unreadable = text.count('<span class="unreadable"')
    shown = text.count("<img ") + unreadable
    print(f"{results / 'report.html'}: {shown} pictures, {unreadable} of them unreadable")


def page(
    run: Json,
    cells: Cells,
    curves: list[Json],
    galleries: dict[str, Gallery],
    curation: Curation | None,
) -> str:
    """Compose the page; its templates, which also word the notes, are the only files read."""
    main, labels = main_head(run["heads"]), {head["name"]: marked(head) for head in run["heads"]}
    groups = grouped(run["heads"], cells)
    heads, references = groups[0] + groups[1], groups[2]
    strongest = sorted(heads, key=lambda head: (head != main, -_height(cells, head)))
    styled = styles([labels[head] for head in strongest], [labels[head] for head in references])
    looks = {labels[head]: styled[labels[head]] for head in heads + references}
    columns = [*galleries, AVERAGE]
    estimates = [Dot(c, labels[h], *cells["r_auroc", h, c][:3]) for c in columns for h in labels]
    points = [Point(p["set"], labels[p["head"]], p["coverage"], p["risk"]) for p in curves]
    kinds = two_kinds(cells, groups[:2])
    curated = curation.sets if curation else []
    safe = {each.about["name"]: kept(each.about["safe"]) for each in curated}
    return PAGE.get_template("report.html").render(
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
        measures={name: table(cells, groups, measures(name)) for name in [AVERAGE, *galleries]},
        human=table(cells, groups, human(columns)),
        known=table(cells, groups, known(columns)),
        kinds=kinds,
        scatters=scatters(cells, kinds, {head: looks[labels[head]] for head in heads}),
        agreements=agreements(cells, kinds),
        safe=safe,
        safe_swatches={case: Markup(swatch(look)) for case, look in CASES.items()},
        safe_panels=[Markup(dropping(name, found)) for name, found in safe.items()],
        curation=curation,
    )


def scatters(cells: Cells, kinds: Table, looks: dict[str, Style]) -> list[Markup]:
    """Draw the heads' numbers in every other column against those in the last."""

    def draw(x: Column, y: Column) -> Markup:
        places = {
            head: (cells[x.metric, head, x.set].value, cells[y.metric, head, y.set].value)
            for head in looks
        }
        return Markup(against(places, looks, x.title, y.title))

    return [draw(x, y) for x in kinds.columns[-1:] for y in kinds.columns[:-1]]


def dropping(name: str, found: list[Kept]) -> str:
    """Draw what leaving out a share of all of a set's images does to its recall."""
    shares = [each for each in found if each.rule == "global"]
    curves = {
        case: [(each.share, _defined(each.cases[case]["recall"])) for each in shares]
        for case in CASES
    }
    return recall_by_share(curves, CASES, name)


def _defined(number: float | None) -> float:
    return math.nan if number is None else number


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


def _there(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"expected the results of evaluate, got no {path}: run evaluate")
    return path


main = command(run)

if __name__ == "__main__":
    typer.run(main)
