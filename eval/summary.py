"""The summary: every metric of every head on every set, as one tidy table.

Comes in: the scores and hits of a set's queries. Goes out: rows of head, seed, set, metric, value,
interval and spread; curves; and the nested numbers that `dvc metrics show` reads.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Float

from askance.eval import metrics
from askance.eval.intervals import (
    Statistic,
    interval,
    resample,
    weighted_aurc,
    weighted_r_auroc,
)

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
    """One head's uncertainties on a set's queries, a row per seed; `cropped` where it has any.

    `hit`: the hits of the head's own neighbours, where it searches by another representation than
    the frozen embedding.
    """

    head: str
    seeds: list[int]
    plain: Float[np.ndarray, "s n"]
    cropped: Float[np.ndarray, "s n"] | None = None
    hit: Bool[np.ndarray, "s n"] | None = None

    def hits(self, queries: Queries) -> Bool[np.ndarray, "s n"]:
        """Return what each seed has to foretell."""
        return np.tile(queries.hit, (len(self.plain), 1)) if self.hit is None else self.hit


@dataclass(frozen=True)
class SetSummary:
    """A set's rows, and the resampled R-AUROC of each head (r,), for averaging over sets."""

    name: str
    upstream: bool
    rows: list[Row]
    replicates: dict[str, Float[np.ndarray, " r"]]


def summarise(
    queries: Queries,
    heads: Iterable[Scores],
    resamples: int,
    advance: Callable[[int], None] = lambda count: None,
) -> SetSummary:
    """Compute every metric of every head on one set; `advance` is told of each head done."""
    reason = metrics.undefined(queries.hit)
    rows = _rows("", queries.name, "r1", [_recall(queries.hit)], [0], [reason])
    replicates = {}
    for scores in heads:
        drawn = {
            "r_auroc": _resampled(weighted_r_auroc, queries, scores, resamples),
            "aurc": _resampled(weighted_aurc, queries, scores, resamples),
        }
        replicates[scores.head] = drawn["r_auroc"]
        rows += _retrieval_rows(queries, scores, drawn) + _upstream_rows(queries, scores)
        advance(1)
    return SetSummary(queries.name, queries.correct is not None, rows, replicates)


def _recall(hit: Bool[np.ndarray, " n"]) -> float:
    return float(hit.mean()) if len(hit) else math.nan


def _resampled(
    statistic: Statistic, queries: Queries, scores: Scores, resamples: int
) -> Float[np.ndarray, " r"]:
    """Resample the mean over seeds: the draws are the set's, the same for all seeds and heads."""
    runs = [(scores.plain, queries.hit)]
    if scores.hit is not None:
        runs = [(u[None], hit) for u, hit in zip(scores.plain, scores.hit, strict=True)]
    drawn = [resample(statistic, u, hit, resamples, queries.name) for u, hit in runs]
    return np.mean(drawn, axis=0)


def _retrieval_rows(
    queries: Queries, scores: Scores, drawn: dict[str, Float[np.ndarray, " r"]]
) -> list[Row]:
    hits = scores.hits(queries)
    runs = list(zip(scores.plain, hits, strict=True))
    values = {
        "r_auroc": [metrics.r_auroc(u, hit) for u, hit in runs],
        "aurc": [metrics.aurc(u, hit) for u, hit in runs],
    }
    if scores.hit is not None:
        values["r1"] = [_recall(hit) for hit in hits]
    if scores.cropped is not None:
        pairs = zip(scores.plain, scores.cropped, strict=True)
        values["crop_win"] = [metrics.crop_win_rate(u, v) for u, v in pairs]
    reasons = [metrics.undefined(hit) for hit in hits]
    return [
        row
        for metric, each in values.items()
        for row in _rows(
            scores.head, queries.name, metric, each, scores.seeds, reasons, drawn.get(metric)
        )
    ]


def _upstream_rows(queries: Queries, scores: Scores) -> list[Row]:
    if queries.correct is None or queries.loss is None:
        return []
    reasons = [metrics.undefined(queries.correct)] * len(scores.seeds)
    auroc = [metrics.r_auroc(u, queries.correct) for u in scores.plain]
    rank = [metrics.spearman(u, queries.loss) for u in scores.plain]
    head, name, seeds = scores.head, queries.name, scores.seeds
    return [
        *_rows(head, name, "auroc_classification", auroc, seeds, reasons),
        *_rows(head, name, "spearman_loss", rank, seeds, ["constant"] * len(seeds)),
    ]


def average(sets: list[SetSummary]) -> list[Row]:
    """Average R@1, and each head's R-AUROC, AURC, crop wins and own R@1, over the zero-shot sets.

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
        reasons = ["undefined on one of the sets"] * len(seeds)
        rows += _rows(head, AVERAGE, metric, values, seeds, reasons, drawn)
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
    reasons: list[str],
    drawn: Float[np.ndarray, " r"] | None = None,
) -> list[Row]:
    """Return one row per seed, and one of their mean with its interval and spread.

    `reasons` say per seed why a value is undefined, if it is; undefined for one, the mean is, too.
    """
    said = [why if math.isnan(value) else "" for why, value in zip(reasons, values, strict=True)]
    first = next((f"seed {s}: {why}" for s, why in zip(seeds, said, strict=True) if why), "")
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
        reason=said[0] if len(set(said)) == 1 else first,
    )
    nothing = {"lower": math.nan, "upper": math.nan, "sd": math.nan}
    each = [
        mean | nothing | {"seed": s, "value": v, "reason": why}
        for s, v, why in zip(seeds, values, said, strict=True)
    ]
    return [mean, *each]  # type: ignore[list-item]


def curve(queries: Queries, scores: Scores) -> list[Point]:
    """Return the risk-coverage curve of a head, averaged over seeds, at up to 100 coverages."""
    runs = zip(scores.plain, scores.hits(queries), strict=True)
    coverages, risks = zip(*(metrics.risk_coverage(u, hit) for u, hit in runs), strict=True)
    coverage, risk = coverages[0], np.mean(risks, axis=0)
    places = np.unique(np.linspace(0, len(risk) - 1, min(POINTS, len(risk))).round().astype(int))
    return [
        Point(set=queries.name, head=scores.head, coverage=float(coverage[i]), risk=float(risk[i]))
        for i in places
    ]


def nested(rows: list[Row]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Return the means over seeds as {metric: {head: {set: value}}}; undefined is None.

    Their spreads over seeds are the metrics `<metric>_sd`. The R@1 of the frozen embedding is that
    of a "head" called `backbone`; heads with neighbours of their own have their own.
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
