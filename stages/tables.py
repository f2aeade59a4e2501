"""The report's tables: which metrics and heads have numbers, and how alike metrics rank the heads.

Comes in: evaluate's table, and curate's recalls. Goes out: means over seeds, the columns of each
of the report's tables that have numbers, and rank correlations between columns.
"""

import math
from itertools import combinations, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow.parquet as pq

from askance.eval.figures import COIN
from askance.eval.ranks import spearman
from askance.eval.summary import AVERAGE

FEWEST = 3  # heads to correlate ranks over


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


class Cells(dict[tuple[str, str, str], Cell]):
    """Means over seeds by metric, head and set; what isn't there was not measured."""

    def __missing__(self, key: tuple[str, str, str]) -> Cell:
        return Cell()


class Column(NamedTuple):
    """A metric on a set, under a title; columns that stand together have the same note."""

    title: str
    note: str
    metric: str
    set: str
    digits: int = 2


class Table(NamedTuple):
    """Columns that have numbers, and, in their groups, the heads that have some of them."""

    columns: list[Column]
    groups: list[list[str]]


class Agreement(NamedTuple):
    """The rank correlation of two columns over some heads; NaN is undefined, for a `reason`."""

    value: float
    reason: str
    heads: int


class Kept(NamedTuple):
    """Where a rule keeps a share of a set's images: what it kept, and rows of recall by case."""

    rule: str
    keep: float
    share: float
    cases: dict[str, dict[str, Any]]


def read_cells(path: Path) -> Cells:
    """Read the table; a row over all seeds (-1) counts before those of one."""
    rows = sorted(pq.read_table(path).to_pylist(), key=lambda row: -row["seed"])
    keys = [(row["metric"], row["head"], row["set"]) for row in rows]
    found = (Cell(*(row[field] for field in Cell._fields)) for row in rows)
    return Cells(zip(keys, found, strict=True))


def kept(rows: list[dict[str, Any]]) -> list[Kept]:
    """Gather curate's recalls of a set by rule and share, in their order."""
    groups = groupby(rows, key=itemgetter("rule", "keep", "share"))
    return [
        Kept(rule, keep, share, {row["case"]: row for row in found})
        for (rule, keep, share), found in groups
    ]


def table(cells: Cells, groups: list[list[str]], columns: list[Column]) -> Table:
    """Leave out the columns that no head has, and the heads that have none of the columns."""

    def has(head: str, column: Column) -> bool:
        return (column.metric, head, column.set) in cells

    heads = [head for group in groups for head in group]
    kept = [column for column in columns if any(has(head, column) for head in heads)]
    rows = [[head for head in group if any(has(head, each) for each in kept)] for group in groups]
    return Table(kept, rows)


def measures(name: str) -> list[Column]:
    """Return the columns for all that is asked of one set alone, but R-AUROC."""
    return [
        Column("AURC", "of retrieval", "aurc", name, digits=3),
        Column("excess AURC", "of retrieval", "excess_aurc", name, digits=3),
        Column("AUGRC", "of retrieval", "augrc", name, digits=3),
        Column("wins", "of crops", "crop_win", name),
        Column("correlation", "of crops", "crop_correlation", name),
        Column("AUROC", "of the classifier", "auroc_classification", name),
        Column("correlation", "of its loss", "spearman_loss", name),
    ]


def human(names: list[str]) -> list[Column]:
    """Return the columns for what people's votes say."""
    metrics = {"human_correlation": "correlation", "dirac_auroc": "disputed"}
    return [Column(name, note, metric, name) for metric, note in metrics.items() for name in names]


def known(names: list[str]) -> list[Column]:
    """Return the columns for the mixtures with upstream images."""
    metrics = {"mixed_r_auroc": "mixed", "ood_auroc": "OOD"}
    return [Column(name, note, metric, name) for metric, note in metrics.items() for name in names]


def two_kinds(cells: Cells, groups: list[list[str]]) -> Table:
    """Return the averages that tell doubt about an image from doubt about the unknown.

    Without both kinds there is no column.
    """
    columns = [
        Column("R-AUROC", "either", "r_auroc", AVERAGE),
        Column("human correlation", "aleatoric", "human_correlation", AVERAGE),
        Column("crop wins", "aleatoric", "crop_win", AVERAGE),
        Column("crop correlation", "aleatoric", "crop_correlation", AVERAGE),
        Column("OOD AUROC", "epistemic", "ood_auroc", AVERAGE),
    ]
    found = table(cells, groups, columns)
    kinds = {column.note for column in found.columns}
    return found if {"aleatoric", "epistemic"} <= kinds else Table([], [])


def agreements(cells: Cells, shown: Table) -> dict[tuple[str, str], Agreement]:
    """Return how alike every two columns rank the heads, by the metrics of both."""
    heads = [head for group in shown.groups for head in group]
    found = {}
    for first, second in combinations(shown.columns, 2):
        pairs = [[cells[c.metric, h, c.set].value for c in (first, second)] for h in heads]
        found[first.metric, second.metric] = _agreement(np.array(pairs))
    return found


def _agreement(pairs: np.ndarray) -> Agreement:
    pairs = pairs[np.isfinite(pairs).all(axis=1)]
    heads = len(pairs)
    if heads < FEWEST:
        return Agreement(math.nan, f"heads with both: {heads}, fewer than {FEWEST}", heads)
    value = spearman(*pairs.T)
    reason = "one of the two is the same for every head" if math.isnan(value) else ""
    return Agreement(value, reason, heads)
