"""The results as one page: which images go wrong, and how well the uncertainty foretold it.

Comes in: what evaluate wrote (run.json, table.parquet, curves.json, queries/), what curate and map
wrote where they ran, the prepared sets for their pictures, and what each stage took. Goes out:
report.html, one file that needs nothing beside it.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Annotated, NamedTuple

import jinja2
import numpy as np
import typer
from markupsafe import Markup

from askance.eval.figures import (
    COIN,
    COLORS,
    GREY,
    MARKS,
    Dot,
    Style,
    against,
    dots,
    marked,
    styles,
    swatch,
)
from askance.eval.summary import AVERAGE
from askance.pipeline.artifacts import atomic, read_json
from askance.pipeline.command import command
from askance.pipeline.runs import Cost, read_costs
from askance.stages.explore import Scene, choices, curves, read_scene
from askance.stages.pictures import Curation, Json, read_curation
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

HERE = Path(__file__).parent
CASES = styles(["safe queries", "safe gallery and queries", "safe gallery"], ["full"])
PAGE = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
)


class Script(NamedTuple):
    """A script of the page, and its hash: the page's policy lets no other run."""

    text: Markup
    digest: str


def run(
    results: Annotated[Path, typer.Argument(help="the folder that evaluate wrote")],
    data: Annotated[Path, typer.Argument(help="the folder of prepared sets")],
    *,
    pictures: Annotated[int, typer.Option(min=1, help="of a set, in every row of them")] = 8,
    limit: Annotated[
        int, typer.Option(min=2, max=60_000, help="of pictures on the page, all sets")
    ] = 8000,
) -> None:
    """Write RESULTS/report.html: the results as one page, with pictures of the sets in DATA."""
    about = read_json(_there(results / "run.json"))
    cells = read_cells(_there(results / "table.parquet"))
    points = read_json(_there(results / "curves.json"))
    curation = read_curation(results / "curation" / "summary.json", data, pictures)
    scenes = []
    for name in (each["name"] for each in about["sets"]):
        queries = _there(results / "queries" / f"{name}.parquet")
        scene = read_scene(
            queries,
            data / name,
            results / "maps" / f"{name}.parquet",
            choices(about["heads"]),
            ends=pictures,
            limit=limit // len(about["sets"]),
        )
        scenes.append(scene._replace(data=scene.data | curves(name, points)))
    root = results.parent
    costs = read_costs(
        data,
        *(root / name for name in ("stores", "neighbours", "neighbours/mixed")),
        root,
        results,
        results / "maps",
    )
    text = page(about, cells, scenes, curation, costs, pictures)
    with atomic(results / "report.html") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{results / 'report.html'}: {len(text.encode()) / 2**20:.1f} MiB")


def page(
    run: Json,
    cells: Cells,
    scenes: list[Scene],
    curation: Curation | None,
    costs: list[Cost],
    pictures: int,
) -> str:
    """Compose the page; its templates, style and scripts are the only files read."""
    chosen, labels = choices(run["heads"]), {head["name"]: marked(head) for head in run["heads"]}
    main = chosen[0]
    groups = grouped(run["heads"], cells)
    heads, references = groups[0] + groups[1], groups[2]
    strongest = sorted(heads, key=lambda head: (head != main, -_height(cells, head)))
    styled = styles([labels[head] for head in strongest], [labels[head] for head in references])
    looks = {labels[head]: styled[labels[head]] for head in heads + references}
    names = [scene.data["name"] for scene in scenes]
    columns = [*names, AVERAGE]
    estimates = [Dot(c, labels[h], *cells["r_auroc", h, c][:3]) for c in columns for h in labels]
    kinds = two_kinds(cells, groups[:2])
    curated = curation.sets if curation else []
    safe = {each.about["name"]: kept(each.about["safe"]) for each in curated}
    scenes = [
        s._replace(data=s.data | {"safe": _shares(safe.get(s.data["name"], []))}) for s in scenes
    ]
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
        scenes=scenes,
        mapped=[s for s in scenes if any(x is not None for x in s.data["pairs"]["x"])],
        choices=chosen,
        pictures=pictures,
        measures={name: table(cells, groups, measures(name)) for name in [AVERAGE, *names]},
        human=table(cells, groups, human(columns)),
        known=table(cells, groups, known(columns)),
        kinds=kinds,
        scatters=scatters(cells, kinds, {head: looks[labels[head]] for head in heads}),
        agreements=agreements(cells, kinds),
        safe=safe,
        safe_swatches={case: Markup(swatch(look)) for case, look in CASES.items()},
        curation=curation,
        costs=costs,
        data=_json(_drawn(chosen, labels, looks, scenes)),
        scripts=scripts(),
    )


def _drawn(
    chosen: list[str], labels: dict[str, str], looks: dict[str, Style], scenes: list[Scene]
) -> Json:
    """Return all that the page's script draws."""
    return {
        "heads": [{"name": h, "label": labels[h]} | _line(looks[labels[h]]) for h in labels],
        "choices": chosen,
        "cases": [{"name": case} | _line(look) for case, look in CASES.items()],
        "sets": [scene.data for scene in scenes],
    }


def scripts() -> list[Script]:
    """Return the page's scripts: the drawing library, and our own."""
    import vl_convert

    texts = [
        vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"),
        (HERE / "report.js").read_text(encoding="utf-8"),
    ]
    safe = [text.replace("</script", "<\\/script") for text in texts]
    digests = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in safe]
    return [Script(Markup(text), digest) for text, digest in zip(safe, digests, strict=True)]


def _json(data: Json) -> Markup:
    """Return data as JSON that can stand in a script element: no tag can end or begin in it."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("<", "\\u003c"))  # the same string to a JSON reader


def _line(look: Style) -> Json:
    """Return a head's look for a curve; the colour of the text is None."""
    dash = {"-": [], "--": [6, 3]}.get(look.dash) if isinstance(look.dash, str) else look.dash[1]
    color = look.color if look.color in (*COLORS, GREY) else None
    return {"color": color, "dash": [3 * length for length in dash] if dash else []}


def _shares(found: list[Kept]) -> list[Json]:
    """Return the recalls of a set where a share of all its images is kept, a row for each case."""
    return [
        {"case": case, "share": each.share, "recall": row["recall"], "queries": row["queries"]}
        for each in found
        if each.rule == "global"
        for case, row in each.cases.items()
    ]


def scatters(cells: Cells, kinds: Table, looks: dict[str, Style]) -> list[Markup]:
    """Draw the heads' numbers in every other column against those in the last."""

    def draw(x: Column, y: Column) -> Markup:
        places = {
            head: (cells[x.metric, head, x.set].value, cells[y.metric, head, y.set].value)
            for head in looks
        }
        return Markup(against(places, looks, x.title, y.title))

    return [draw(x, y) for x in kinds.columns[-1:] for y in kinds.columns[:-1]]


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
