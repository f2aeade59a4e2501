"""What the heads of an experiment do better or worse than those of another, on the same queries.

Comes in: experiments with their tables of queries. Goes out: a `Contrast` for every head, metric
and set: both values, their difference with its interval, and what may be said of it.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64

from askance.eval import estimates
from askance.eval.estimates import Estimate, Measurement, mean_over_runs, mean_over_sets
from askance.eval.intervals import interval
from askance.eval.paired import Answers, Draws, measure, resampled
from askance.eval.summary import AVERAGE
from askance.experiments import Experiment

RANKED = {"r_auroc": "R-AUROC", "aurc": "AURC"}
METRICS = RANKED | {"r1": "R@1"}
LOWER = ("aurc",)  # is better
EMBEDDING = "frozen embedding"  # stands for all heads that have its neighbours, and so its R@1
NAMED = {"heads": "heads", "queries": "data sets"}
BY_CHANCE = 0.05  # share of the intervals that leave out 0 although there is no difference
Verdict = Literal["better", "worse", "not told apart", "equal", "not compared"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
TOLD = VERDICTS[:3]  # those with an interval


class Cell(NamedTuple):
    """What a number is of."""

    head: str
    metric: str
    set: str


class Contrast(NamedTuple):
    """A head's metric on a set in two experiments.

    `difference`: after less before; NaN with a reason where they can't be compared. `equal`: both
    say the same of every query. `over_seeds`: the standard error of the difference over seeds, NaN
    where a trained head has but one.
    """

    cell: Cell
    before: Estimate
    after: Estimate
    difference: Estimate
    equal: bool
    over_seeds: float

    @property
    def verdict(self) -> Verdict:
        """What the interval tells: nothing, if 0 is in it."""
        if self.equal:
            return "equal"
        if math.isnan(self.difference):
            return "not compared"
        if self.difference.lower > 0 or self.difference.upper < 0:
            return "worse" if (self.difference > 0) == (self.cell.metric in LOWER) else "better"
        return "not told apart"

    @property
    def firm(self) -> bool:
        """Whether the choice of seeds is unlikely to have made it, as far as these show."""
        return abs(self.difference) > 2 * self.over_seeds

    @property
    def marked(self) -> str:
        """The verdict, with a star where it is one and not firm."""
        return f"{self.verdict} *" if self.verdict in TOLD[:2] and not self.firm else self.verdict


@dataclass(frozen=True)
class Comparison:
    """An experiment against the first one."""

    first: Experiment
    other: Experiment
    found: dict[Cell, Contrast]

    def of(self, metric: str) -> list[Contrast]:
        """Return the contrasts of a metric, but for heads that are equal on every set."""
        same = self.same(metric)
        mine = [each for each in self.found.values() if each.cell.metric == metric]
        return [each for each in mine if each.cell.head not in same]

    def same(self, metric: str) -> list[str]:
        """Return the heads that are equal on every set, by a metric."""
        mine = [each for each in self.found.values() if each.cell.metric == metric]
        differ = {each.cell.head for each in mine if not each.equal}
        heads = dict.fromkeys(each.cell.head for each in mine)
        return [head for head in heads if head not in differ]

    def verdicts(self, metric: str, name: str) -> dict[Verdict, list[Contrast]]:
        """Return the contrasts on a set by what they tell, the good news first."""
        mine = [c for c in self.found.values() if (c.cell.metric, c.cell.set) == (metric, name)]
        by_verdict = {told: [each for each in mine if each.verdict == told] for told in VERDICTS}
        return {told: found for told, found in by_verdict.items() if found}

    def notes(self) -> list[str]:
        """Say what has to be known to read the differences."""
        said = []
        for kind in ("heads", "queries"):
            pair = [(self.first, self.other), (self.other, self.first)]
            for here, there in pair:
                known = getattr(there, kind)
                if alone := [each for each in getattr(here, kind) if each not in known]:
                    said.append(f"{NAMED[kind]} of {here.name} alone: {', '.join(alone)}")
        found = self.found.values()
        reasons = dict.fromkeys(each.difference.reason for each in found)
        said += [f"not compared: {reason}" for reason in reasons if reason]
        told = [each for each in found if each.verdict in TOLD]
        if any(each.cell.head == EMBEDDING for each in told):
            said.append(
                "the neighbours are others, of another backbone or index: what differs is these and"
                " the head together"
            )
        if any(each.marked.endswith("*") for each in told):
            said.append(
                "* less than twice its standard error over seeds, or of a single seed: other seeds"
                " may turn it round"
            )
        if (chance := BY_CHANCE * len(told)) >= 1:
            said.append(
                f"many comparisons: of {len(told)} intervals about {chance:.0f} would leave out 0"
                " by chance alone, if nothing differed"
            )
        return said


@dataclass(frozen=True)
class _Score:
    """What was measured of a head on a set; `draws`: where its queries are the first's."""

    answers: Answers
    runs: dict[str, list[Measurement]]
    draws: Draws | None


_Scores = dict[tuple[str, str], _Score]  # by experiment and head


def compare(experiments: Sequence[Experiment], heads: Sequence[str]) -> list[Comparison]:
    """Compare each other experiment with the first, by the heads and sets that both have.

    The last set is the average over their zero-shot sets.

    Raises:
        ValueError: two experiments share no set, or an uncertainty is NaN.
    """
    first, *others = experiments
    for other in others:
        if not set(first.queries) & set(other.queries):
            raise ValueError(
                f"expected a data set that both have, got {', '.join(first.queries)} in"
                f" {first.name} and {', '.join(other.queries)} in {other.name}: leave one out"
            )
    with ThreadPoolExecutor() as pool:  # most of the time is numpy's, which lets others run
        scores = pool.map(lambda name: _scores(name, experiments, heads), first.queries)
        by_set = dict(zip(first.queries, scores, strict=True))
    found = [_contrasts(first, other, heads, by_set) for other in others]
    by_cell = [{contrast.cell: contrast for contrast in each} for each in found]
    return [Comparison(first, other, c) for other, c in zip(others, by_cell, strict=True)]


def apart(first: pa.Table, other: pa.Table) -> str:
    """Say why two tables are not of the same queries; "" where they are, in any order."""
    keys, others = (set(table["key"].to_pylist()) for table in (first, other))
    if keys != others:
        foreign = len(others - keys)
        return f"expected the same {len(keys):,} keys, got {len(others):,}, {foreign:,} of them new"
    before, after = (table["label"].to_numpy()[_by_key(table)] for table in (first, other))
    if moved := np.count_nonzero(before != after):
        return f"expected the same labels, got others for {moved:,} of {len(keys):,} keys"
    return ""


def _by_key(table: pa.Table) -> Int64[np.ndarray, " n"]:
    return np.argsort(table["key"].to_numpy().astype(str), kind="stable")


def _scores(name: str, experiments: Sequence[Experiment], heads: Sequence[str]) -> _Scores:
    """Measure the heads of every experiment on a set."""
    tables = {each.name: each.queries[name] for each in experiments if name in each.queries}
    first = next(iter(tables.values()))
    answers: dict[tuple[str, str], Answers] = {}
    paired: list[tuple[str, str]] = []
    for experiment, table in tables.items():
        ordered = table.take(pa.array(_by_key(table)))
        found = {(experiment, head): _answers(ordered, head) for head in heads}
        answers |= {key: each for key, each in found.items() if len(each.uncertainty)}
        paired += [] if apart(first, table) else [key for key in found if key in answers]
    draws = resampled([answers[key] for key in paired], seed=name)
    by_key = dict(zip(paired, draws, strict=True))
    return {key: _Score(each, measure(each), by_key.get(key)) for key, each in answers.items()}


def _answers(table: pa.Table, head: str) -> Answers:
    """Gather a head's answers; one without neighbours of its own has those of the embedding."""
    columns = [name for name in table.column_names if name.startswith(f"uncertainty/{head}/")]
    found = {}
    for kind in ("uncertainty", "neighbour", "hit"):
        own = [name.replace("uncertainty", kind, 1) for name in columns]
        names = [name if name in table.column_names else kind for name in own]
        found[kind] = np.array([table[name].to_numpy() for name in names])
    row = table["row"].to_numpy()
    return Answers(row, found["uncertainty"], found["neighbour"], found["hit"])


def _contrasts(
    first: Experiment, other: Experiment, heads: Sequence[str], by_set: Mapping[str, _Scores]
) -> Iterator[Contrast]:
    """Compare an experiment with the first."""
    sets = [name for name in first.queries if name in other.queries]
    reasons = {name: apart(first.queries[name], other.queries[name]) for name in sets}
    zero_shot = [name for name in sets if name in first.zero_shot and name in other.zero_shot]
    columns = {name: [name] for name in sets} | ({AVERAGE: zero_shot} if zero_shot else {})
    traits = {head: (first.heads[head], other.heads[head]) for head in heads if head in other.heads}
    mapped = [head for head, both in traits.items() if any(each["mapped"] for each in both)]
    plain = next((head for head in traits if head not in mapped), None)
    for head, both in traits.items():
        for metric in METRICS if head in mapped or head == plain else RANKED:
            label = EMBEDDING if metric == "r1" and head == plain else head
            trained = label != EMBEDDING and any(each["trained"] for each in both)
            for column, names in columns.items():
                scores = [by_set[name] for name in names]
                pairs = [(each[first.name, head], each[other.name, head]) for each in scores]
                why = "; ".join(f"{name}: {reasons[name]}" for name in names if reasons[name])
                yield _contrast(Cell(label, metric, column), pairs, why, trained)


def _contrast(
    cell: Cell, pairs: Sequence[tuple[_Score, _Score]], why: str, trained: bool
) -> Contrast:
    """Compare a metric on a set, or its mean over several; `why` they can't be, if so."""
    before, after = (_by_seed(cell.metric, scores) for scores in zip(*pairs, strict=True))
    means = mean_over_runs(before), mean_over_runs(after)
    reason = why or means[0].reason or means[1].reason
    equal = not why and all(_equal(cell.metric, *pair) for pair in pairs)
    if reason:
        difference = Estimate(math.nan, reason=reason)
    elif cell.metric == "r1":
        found = [[mean_over_runs(score.runs["r1"]) for score in pair] for pair in pairs]
        apiece = [estimates.difference(second, first) for first, second in found]
        difference = mean_over_sets(apiece).estimate()
    else:
        drawn = [_drawn(cell.metric, *pair) for pair in pairs]
        difference = Estimate(means[1].value - means[0].value, *interval(np.mean(drawn, axis=0)))
    errors = (_error(runs) if trained else 0.0 for runs in (before, after))
    values = [mean.estimate() for mean in means]
    return Contrast(cell, values[0], values[1], difference, equal, math.hypot(*errors))


def _by_seed(metric: str, scores: Sequence[_Score]) -> list[Measurement]:
    """Measure each seed on average over sets."""
    return [mean_over_sets(s) for s in zip(*(each.runs[metric] for each in scores), strict=True)]


def _equal(metric: str, before: _Score, after: _Score) -> bool:
    """Whether both say the same of every query, to the last bit."""
    mine, others = before.answers, after.answers
    same = np.array_equal(mine.hit, others.hit)
    return same and (metric == "r1" or np.array_equal(mine.uncertainty, others.uncertainty))


def _drawn(metric: str, before: _Score, after: _Score) -> Float64[np.ndarray, " r"]:
    """Return how much larger a metric is after, in every draw."""
    if before.draws is None or after.draws is None:
        raise AssertionError(f"expected draws of both for {metric}, got one")
    return getattr(after.draws, metric) - getattr(before.draws, metric)


def _error(runs: Sequence[Measurement]) -> float:
    """Return the standard error of a mean over seeds; NaN for one."""
    values = [run.value for run in runs]
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
