"""Every table of an evaluation, made anew from the arrays that it wrote: no store, head or GPU.

`python -m benchmarks.evaluate [RESULTS]` prints them as Markdown, and how far the numbers are from
those of the run.
"""

import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Shaped

from askance.eval.figures import MARKS, marked
from askance.eval.summary import (
    MEAN,
    Mixture,
    Queries,
    Row,
    Summary,
    Uncertainties,
    average,
    summarise,
)
from askance.pipeline.artifacts import read_json
from askance.stages.tables import Cell, agreements, two_kinds
from askance.stages.tables import Cells as TableCells

TITLES = {
    "r_auroc": "R-AUROC",
    "r_auroc_difference": "R-AUROC less that of the first head",
    "aurc": "AURC (lower is better)",
    "excess_aurc": "Excess AURC (lower is better)",
    "augrc": "AUGRC (lower is better)",
    "crop_win": "Crop wins",
    "crop_correlation": "Rank correlation with the crop",
    "human_correlation": "Rank correlation with people's entropy",
    "dirac_auroc": "AUROC of images people disagree on",
    "mixed_r_auroc": "R-AUROC in the mixture",
    "ood_auroc": "OOD AUROC",
    "auroc_classification": "AUROC of the upstream classifier's errors",
    "spearman_loss": "Rank correlation with the upstream classifier's loss",
}
TOLERANCE = 1e-9

Cells = dict[tuple[str, str, str], Row]  # by metric, head and set: means over seeds


def main(results: Path = Path("results")) -> None:
    """Print all tables of the results in a folder."""
    run = read_json(results / "run.json")
    start = time.process_time()
    summaries = [read(results / "queries", about, run["heads"]) for about in run["sets"]]
    rows = [row for summary in summaries for row in summary.rows()] + average(summaries)
    spent = time.process_time() - start
    cells = {(r["metric"], r["head"], r["set"]): r for r in rows if r["seed"] == MEAN}
    for metric, title in TITLES.items():
        print_table(title, metric, run["heads"], cells)
    print_kinds(run["heads"], cells)
    print(*(f"{mark} {said}" for mark, said in MARKS.items()), sep="\n")
    stored = pq.read_table(results / "table.parquet").to_pylist()
    distance = furthest(rows, stored)
    print(f"\n{len(rows):,} numbers in {spent:.1f} CPU-seconds, {distance:.1g} from the run's own")
    if distance > TOLERANCE:
        sys.exit(1)


def read(folder: Path, about: dict, heads: list[dict]) -> Summary:
    """Summarise a set from its tables, one row per query and one per image of its mixture."""
    table = pq.read_table(folder / f"{about['name']}.parquet")
    mixed, mixture = folder / f"{about['name']}.mixed.parquet", None
    mixed = pq.read_table(mixed) if mixed.is_file() else table.select([])
    if len(mixed.column_names):
        mixture = Mixture(mixed["upstream"].to_numpy(), mixed["hit"].to_numpy())

    def known(name: str) -> Shaped[np.ndarray, " n"] | None:
        return table[name].to_numpy() if name in table.column_names else None

    votes = known("votes")
    queries = Queries(
        name=about["name"],
        row=table["row"].to_numpy(),
        near=table["neighbour"].to_numpy(),
        hit=table["hit"].to_numpy(),
        fraction=table["fraction"].to_numpy(),
        votes=None if votes is None else np.stack(votes),
        correct=known("correct"),
        loss=known("loss"),
        mixture=mixture,
    )
    return summarise(queries, [uncertainties(table, mixed, head) for head in heads])


def uncertainties(table: pa.Table, mixed: pa.Table, head: dict) -> Uncertainties:
    """Return what a head said of the queries, and of the images of the mixture."""
    return Uncertainties(
        head=head["name"],
        seeds=head["seeds"],
        plain=seeds(table, "uncertainty", head),
        cropped=seeds(table, "cropped", head),
        mixed=seeds(mixed, "uncertainty", head),
        near=seeds(table, "neighbour", head),
        hit=seeds(table, "hit", head),
        mixed_hit=seeds(mixed, "hit", head),
    )


def seeds(table: pa.Table, kind: str, head: dict) -> Shaped[np.ndarray, "s n"] | None:
    """Return the columns of a head, a row per seed; None where there are none."""
    names = [f"{kind}/{head['name']}/{seed}" for seed in head["seeds"]]
    if names[0] not in table.column_names:
        return None
    return np.stack([table[name].to_numpy() for name in names])


def print_table(title: str, metric: str, heads: list[dict], cells: Cells) -> None:
    """Print a metric, a row per head and a column per set that has it."""
    sets = list(dict.fromkeys(name for found, _, name in cells if found == metric))
    if not sets:
        return
    print(f"\n| {title} | {' | '.join(sets)} |\n|---|{'---|' * len(sets)}")
    if metric == "r_auroc":
        print(f"| R@1 of the backbone | {' | '.join(text(cells, 'r1', '', s) for s in sets)} |")
    for head in heads:
        line = [text(cells, metric, head["name"], name) for name in sets]
        if metric == "r_auroc" and head["mapped"]:
            own = [f" (R@1 {cells['r1', head['name'], name]['value']:.2f})" for name in sets]
            line = [cell + recall for cell, recall in zip(line, own, strict=True)]
        if any(line):
            print(f"| {marked(head)} | {' | '.join(line)} |")


def text(cells: Cells, metric: str, head: str, name: str) -> str:
    """Write a number with its interval, or why it is undefined; "" where it is not measured."""
    if (metric, head, name) not in cells:
        return ""
    cell = cells[metric, head, name]
    if cell["reason"]:
        return cell["reason"]
    return f"{cell['value']:.3f} [{cell['lower']:.3f}, {cell['upper']:.3f}]"


def print_kinds(heads: list[dict], cells: Cells) -> None:
    """Print the report's averages that should tell two kinds of uncertainty apart.

    Crops lose what was in the picture (aleatoric), the images of other sets were never seen
    (epistemic). Below them stands how alike they rank the heads.
    """
    known = {key: Cell(*(row[field] for field in Cell._fields)) for key, row in cells.items()}
    names = {head["name"]: marked(head) for head in heads if not head.get("reference")}
    shown = two_kinds(TableCells(known), [list(names)])
    if not shown.columns:
        return
    print(f"\n| averages | {' | '.join(column.title for column in shown.columns)} |")
    print(f"|---|{'---|' * len(shown.columns)}")
    for name in shown.groups[0]:
        line = [f"{known[column.metric, name, column.set].value:.3f}" for column in shown.columns]
        print(f"| {names[name]} | {' | '.join(line)} |")
    print()
    for (first, second), found in agreements(TableCells(known), shown).items():
        print(f"{TITLES[first]} and {TITLES[second]}: {found.value:+.2f} over {found.heads} heads")
    print()


def furthest(rows: list[Row], stored: list[Row]) -> float:
    """Return how far numbers and interval ends made anew are from stored ones; infinite for NaN."""

    def key(row: Row) -> tuple[str, str, str, int]:
        return row["metric"], row["head"], row["set"], row["seed"]

    tables = [sorted(table, key=key) for table in (rows, stored)]
    new, old = (
        np.array([[row[name] for name in ("value", "lower", "upper")] for row in table])
        for table in tables
    )
    same = list(map(key, tables[0])) == list(map(key, tables[1]))
    if not same or (np.isnan(new) != np.isnan(old)).any():
        return float("inf")
    return float(np.abs(new - old).max(initial=0, where=~np.isnan(new)))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
