"""The summary: every metric of every head on every set, as one tidy table.

Comes in: the scores and hits of a set's queries. Goes out: rows of head, seed, set, metric, value,
interval and spread; curves; and the nested numbers that `dvc metrics show` reads.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Float

from askance.eval import metrics
from askance.eval.intervals import interval, resample, weighted_aurc, weighted_r_auroc

AVERAGE = "average"  # the set's name in rows that average over the zero-shot sets
MEAN = -1  # the seed's number in rows that average over seeds
POINTS = 100  # of a risk-coverage curve


class Row(TypedDict):
    """One number: `value` is NaN where undefined, and `reason` then says why.

    `lower` and `upper` are the 95 % interval over queries, `sd` is the spread over seeds; NaN
    where there is none.
    """

    head: str
    seed: int
    set: str
    metric: str
    value: float
    lower: float
    upper: float
    sd: float
    reason: str


class Point(TypedDict):
    """One point of a risk-coverage curve, averaged over seeds."""

    set: str
    head: str
    coverage: float
    risk: float


@dataclass(frozen=True)
class Queries:
    """A set's queries, (n,) each; `correct` and `loss` only where the classes are the upstream's.

    `hit`: the nearest other image has the same label. `correct` and `loss`: of the upstream
    classifier.
    """

    name: str
    hit: Bool[np.ndarray, " n"]
    correct: Bool[np.ndarray, " n"] | None = None
    loss: Float[np.ndarray, " n"] | None = None


@dataclass(frozen=True)
class Scores:
    """One head's uncertainties on a set's queries, a row per seed; `cropped` where it has any."""

    head: str
    seeds: list[int]
    plain: Float[np.ndarray, "s n"]
    cropped: Float[np.ndarray, "s n"] | None = None


@dataclass(frozen=True)
class SetSummary:
    """A set's rows, and the resampled R-AUROC of each head (r,), for averaging over sets."""

    name: str
    upstream: bool
    rows: list[Row]
    replicates: dict[str, Float[np.ndarray, " r"]]


def summarise(queries: Queries, heads: Iterable[Scores], resamples: int) -> SetSummary:
    """Compute every metric of every head on one set."""
    reason = metrics.undefined(queries.hit)
    recall = float(queries.hit.mean()) if len(queries.hit) else math.nan
    rows = _rows("", queries.name, "r1", [recall], [0], reason if not len(queries.hit) else "")
    replicates = {}
    for scores in heads:
        r_auroc = [metrics.r_auroc(u, queries.hit) for u in scores.plain]
        area = [metrics.aurc(u, queries.hit) for u in scores.plain]
        drawn = resample(weighted_r_auroc, scores.plain, queries.hit, resamples, queries.name)
        drawn_area = resample(weighted_aurc, scores.plain, queries.hit, resamples, queries.name)
        replicates[scores.head] = drawn
        rows += _rows(scores.head, queries.name, "r_auroc", r_auroc, scores.seeds, reason, drawn)
        rows += _rows(scores.head, queries.name, "aurc", area, scores.seeds, "", drawn_area)
        if scores.cropped is not None:
            pairs = zip(scores.plain, scores.cropped, strict=True)
            wins = [metrics.crop_win_rate(u, v) for u, v in pairs]
            rows += _rows(scores.head, queries.name, "crop_win", wins, scores.seeds)
        rows += _upstream_rows(queries, scores)
    return SetSummary(queries.name, queries.correct is not None, rows, replicates)


def _upstream_rows(queries: Queries, scores: Scores) -> list[Row]:
    if queries.correct is None or queries.loss is None:
        return []
    reason = metrics.undefined(queries.correct)
    auroc = [metrics.r_auroc(u, queries.correct) for u in scores.plain]
    rank = [metrics.spearman(u, queries.loss) for u in scores.plain]
    name, seeds = queries.name, scores.seeds
    return [
        *_rows(scores.head, name, "auroc_classification", auroc, seeds, reason),
        *_rows(
            scores.head,
            name,
            "spearman_loss",
            rank,
            seeds,
            "constant" if np.isnan(rank).any() else "",
        ),
    ]


def average(sets: list[SetSummary]) -> list[Row]:
    """Average each head's R-AUROC, AURC and crop wins, and R@1, over the zero-shot sets.

    Seed by seed. The interval, of R-AUROC, resamples the queries of each set on their own.
    Undefined on one set, undefined on average.
    """
    zero_shot = [s for s in sets if not s.upstream]
    if not zero_shot:
        return []
    first = [row for row in zero_shot[0].rows if row["seed"] != MEAN]
    rows = []
    for head, metric in dict.fromkeys((row["head"], row["metric"]) for row in first):
        seeds = [row["seed"] for row in first if (row["head"], row["metric"]) == (head, metric)]
        values = [
            float(np.mean([_value(s.rows, head, seed, metric) for s in zero_shot]))
            for seed in seeds
        ]
        drawn = None
        if metric == "r_auroc":
            drawn = np.mean([s.replicates[head] for s in zero_shot], axis=0)
        reason = "undefined on one of the sets" if np.isnan(values).any() else ""
        rows += _rows(head, AVERAGE, metric, values, seeds, reason, drawn)
    return rows


def _value(rows: list[Row], head: str, seed: int, metric: str) -> float:
    return next(
        row["value"]
        for row in rows
        if (row["head"], row["seed"], row["metric"]) == (head, seed, metric)
    )


def _rows(
    head: str,
    name: str,
    metric: str,
    values: list[float],
    seeds: list[int],
    reason: str = "",
    drawn: Float[np.ndarray, " r"] | None = None,
) -> list[Row]:
    """Return one row per seed, and one of their mean with its interval and spread."""
    lower, upper = interval(drawn) if drawn is not None else (math.nan, math.nan)
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    mean = Row(
        head=head,
        seed=MEAN,
        set=name,
        metric=metric,
        value=float(np.mean(values)),
        lower=lower,
        upper=upper,
        sd=sd,
        reason=reason,
    )
    nothing = {"lower": math.nan, "upper": math.nan, "sd": math.nan}
    each = [mean | nothing | {"seed": s, "value": v} for s, v in zip(seeds, values, strict=True)]
    return [mean, *each]  # type: ignore[list-item]


def curve(queries: Queries, scores: Scores) -> list[Point]:
    """Return the risk-coverage curve of a head, averaged over seeds, at up to 100 coverages."""
    coverage, _ = metrics.risk_coverage(scores.plain[0], queries.hit)
    risk = np.mean([metrics.risk_coverage(u, queries.hit)[1] for u in scores.plain], axis=0)
    places = np.unique(np.linspace(0, len(risk) - 1, min(POINTS, len(risk))).round().astype(int))
    return [
        Point(set=queries.name, head=scores.head, coverage=float(coverage[i]), risk=float(risk[i]))
        for i in places
    ]


def nested(rows: list[Row]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return the means over seeds as {metric: {head: {set: value}}}; undefined is None.

    Their spreads over seeds are the metrics `<metric>_sd`. R@1 belongs to the backbone, so its
    "head" is called `backbone`.
    """
    tree: dict[str, dict[str, dict[str, float | None]]] = {}
    for row in (row for row in rows if row["seed"] == MEAN):
        value = None if math.isnan(row["value"]) else round(row["value"], 4)
        numbers = {row["metric"]: value}
        if not math.isnan(row["sd"]):
            numbers[f"{row['metric']}_sd"] = round(row["sd"], 4)
        for metric, number in numbers.items():
            heads = tree.setdefault(metric, {})
            heads.setdefault(row["head"] or "backbone", {})[row["set"]] = number
    return tree
