"""The summary: every metric of every head on every set, as one tidy table.

Comes in: the uncertainties and hits of a set's queries. Goes out: rows of head, seed, set, metric,
value, interval and spread; curves; and the nested numbers that `dvc metrics show` reads.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Float, Int, Int64

from askance.eval import influences
from askance.eval.estimates import Measurement, difference, mean_over_runs, mean_over_sets
from askance.eval.ranks import check_finite
from askance.eval.selective import risk_coverage

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
class Mixture:
    """The images of a half-and-half mixture: which are upstream ones, and which have a hit."""

    upstream: Bool[np.ndarray, " m"]
    hit: Bool[np.ndarray, " m"]


@dataclass(frozen=True)
class Queries:
    """A set's queries, a row each.

    `row` and `near`: the number of the query's image, and that of the nearest other one. `hit`: it
    has the same label. `fraction`: how much of the image its crop shows. `votes`: people's, where
    some voted. `correct` and `loss`: of the upstream classifier, where it knows the classes.
    `mixture`: with upstream images, where it was made.
    """

    name: str
    row: Int64[np.ndarray, " n"]
    near: Int64[np.ndarray, " n"]
    hit: Bool[np.ndarray, " n"]
    fraction: Float[np.ndarray, " n"]
    votes: Int[np.ndarray, "n c"] | None = None
    correct: Bool[np.ndarray, " n"] | None = None
    loss: Float[np.ndarray, " n"] | None = None
    mixture: Mixture | None = None


@dataclass(frozen=True)
class Uncertainties:
    """One head's uncertainties: a row per seed, a column per query or image of the mixture.

    `near`, `hit` and `mixed_hit`: the head's own neighbours and their hits, where it searches by
    another representation than the frozen embedding.
    """

    head: str
    seeds: list[int]
    plain: Float[np.ndarray, "s n"]
    cropped: Float[np.ndarray, "s n"] | None = None
    mixed: Float[np.ndarray, "s m"] | None = None
    near: Int64[np.ndarray, "s n"] | None = None
    hit: Bool[np.ndarray, "s n"] | None = None
    mixed_hit: Bool[np.ndarray, "s m"] | None = None


@dataclass(frozen=True)
class Measured:
    """A head's metric on a set, seed by seed; without seeds, of their mean alone."""

    head: str
    metric: str
    seeds: list[int]
    runs: list[Measurement]


@dataclass(frozen=True)
class Summary:
    """All that was measured on a set; the head "" is the frozen embedding itself."""

    name: str
    upstream: bool
    measured: list[Measured]

    def rows(self) -> list[Row]:
        """Return one row per seed and metric, and one of their mean, as a table has them."""
        return [row for each in self.measured for row in _rows(self.name, each)]


def summarise(queries: Queries, heads: list[Uncertainties]) -> Summary:
    """Compute every metric of every head on one set.

    Raises:
        ValueError: an uncertainty is NaN or infinite.
    """
    recall = influences.recall(queries.hit, queries.row, queries.near)
    measured = [Measured("", "r1", [0], [recall])]
    for answers in heads:
        runs = [_measure(queries, answers, run) for run in range(len(answers.seeds))]
        measured += [
            Measured(answers.head, metric, answers.seeds, [run[metric] for run in runs])
            for metric in runs[0]
        ]
    ranked = [each for each in measured if each.metric == "r_auroc"]
    measured += _differences(ranked, [answers.near is not None for answers in heads])
    return Summary(queries.name, queries.correct is not None, measured)


def _differences(heads: list[Measured], mapped: list[bool]) -> list[Measured]:
    """Compare R-AUROC, the mean over seeds, of all other heads with that of the main one.

    It is the first with the neighbours of the frozen embedding, as in the report; else the first.
    """
    means = [mean_over_runs(each.runs) for each in heads]
    main = mapped.index(min(mapped)) if mapped else 0
    return [
        Measured(each.head, "r_auroc_difference", [], [difference(mean, means[main])])
        for place, (each, mean) in enumerate(zip(heads, means, strict=True))
        if place != main
    ]


def _measure(queries: Queries, answers: Uncertainties, run: int) -> dict[str, Measurement]:
    """Measure one seed of a head; of metrics that need what the set lacks, there is none."""
    plain, hit = answers.plain[run], queries.hit if answers.hit is None else answers.hit[run]
    found = {
        "r_auroc": influences.r_auroc(plain, hit),
        "aurc": influences.aurc(plain, hit),
        "excess_aurc": influences.excess_aurc(plain, hit),
        "augrc": influences.augrc(plain, hit),
    }
    if answers.near is not None:
        found["r1"] = influences.recall(hit, queries.row, answers.near[run])
    if answers.cropped is not None:
        cropped = answers.cropped[run]
        check_finite(cropped)
        found["crop_win"] = influences.share(plain < cropped)
        found["crop_correlation"] = influences.spearman(
            -cropped, queries.fraction, ("uncertainty", "fraction")
        )
    if queries.votes is not None:
        found["human_correlation"] = influences.human_correlation(plain, queries.votes)
        found["dirac_auroc"] = influences.dirac_auroc(plain, queries.votes)
    if queries.mixture is not None and answers.mixed is not None:
        mixed, own = answers.mixed[run], answers.mixed_hit
        hit = queries.mixture.hit if own is None else own[run]
        kinds = "downstream image", "upstream image"
        found["mixed_r_auroc"] = influences.r_auroc(mixed, hit)
        found["ood_auroc"] = influences.auroc(mixed, ~queries.mixture.upstream, kinds)
    if queries.correct is not None and queries.loss is not None:
        found["auroc_classification"] = influences.r_auroc(plain, queries.correct)
        found["spearman_loss"] = influences.spearman(plain, queries.loss, ("uncertainty", "loss"))
    return found


def average(sets: list[Summary]) -> list[Row]:
    """Average every metric over the zero-shot sets that have it.

    Seed by seed; the interval takes sets for independent. Undefined on one set, undefined on
    average.
    """
    by_name: dict[tuple[str, str], list[Measured]] = {}
    for summary in (summary for summary in sets if not summary.upstream):
        for each in summary.measured:
            named = dataclasses.replace(each, runs=[_named(summary.name, run) for run in each.runs])
            by_name.setdefault((each.head, each.metric), []).append(named)
    return [row for found in by_name.values() for row in _rows(AVERAGE, _averaged(found))]


def _named(name: str, run: Measurement) -> Measurement:
    return dataclasses.replace(run, reason=f"{name}: {run.reason}") if run.reason else run


def _averaged(sets: list[Measured]) -> Measured:
    by_seed = zip(*(each.runs for each in sets), strict=True)
    return dataclasses.replace(sets[0], runs=[mean_over_sets(runs) for runs in by_seed])


def _rows(name: str, measured: Measured) -> list[Row]:
    """Return one row per seed, and one of their mean with its spread."""
    values = [run.value for run in measured.runs]
    sd = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    seeds = list(zip(measured.seeds, measured.runs, strict=bool(measured.seeds)))
    mean = mean_over_runs(measured.runs)
    if len({run.reason for run in measured.runs}) > 1:
        reason = next(f"seed {seed}: {run.reason}" for seed, run in seeds if run.reason)
        mean = dataclasses.replace(mean, reason=reason)
    return [
        _row(name, measured, MEAN, mean, sd),
        *(_row(name, measured, seed, run) for seed, run in seeds),
    ]


def _row(
    name: str, measured: Measured, seed: int, measurement: Measurement, sd: float = math.nan
) -> Row:
    estimate = measurement.estimate()
    return Row(
        head=measured.head,
        seed=seed,
        set=name,
        metric=measured.metric,
        value=float(estimate),
        lower=estimate.lower,
        upper=estimate.upper,
        sd=sd,
        reason=estimate.reason,
    )


def curve(queries: Queries, answers: Uncertainties) -> list[Point]:
    """Return the risk-coverage curve of a head, averaged over seeds, at up to 100 coverages."""
    hits = np.broadcast_to(queries.hit, answers.plain.shape) if answers.hit is None else answers.hit
    runs = [risk_coverage(u, hit) for u, hit in zip(answers.plain, hits, strict=True)]
    coverages, risks = zip(*runs, strict=True)
    coverage, risk = coverages[0], np.mean(risks, axis=0)
    places = np.unique(np.linspace(0, len(risk) - 1, min(POINTS, len(risk))).round().astype(int))
    return [
        Point(set=queries.name, head=answers.head, coverage=float(coverage[i]), risk=float(risk[i]))
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
