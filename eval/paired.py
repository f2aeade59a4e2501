"""The paired bootstrap over many heads at once, of one experiment or several, on the same queries.

Comes in: the uncertainties and hits of each head. Goes out: its metrics in each of many draws of
these queries, the same draws for all: differences and means over sets are then plain arithmetic.
`askance.eval.intervals.resample` draws the same; this goes through a block of draws at once, in a
part of the time, and takes hits of each seed's own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64

from askance.eval import influences
from askance.eval.estimates import Measurement
from askance.eval.ranks import check_finite
from askance.pipeline.seeding import generator

BLOCK = 32  # draws at a time: all that is at hand stays in a processor's cache


@dataclass(frozen=True)
class Answers:
    """One head's uncertainties on a set, and what it retrieved: a row per seed.

    `row`: each query's number; `near`: that of the neighbour it found.
    """

    row: Int64[np.ndarray, " n"]
    uncertainty: Float[np.ndarray, "s n"]
    near: Int64[np.ndarray, "s n"]
    hit: Bool[np.ndarray, "s n"]


class Draws(NamedTuple):
    """Metrics of a head, mean over its seeds, in every draw of the queries."""

    r_auroc: Float64[np.ndarray, " r"]
    aurc: Float64[np.ndarray, " r"]


def measure(answers: Answers) -> dict[str, list[Measurement]]:
    """Measure the metrics of every seed.

    Raises:
        ValueError: an uncertainty is NaN or infinite.
    """
    runs = list(zip(answers.uncertainty, answers.hit, strict=True))
    found = zip(answers.hit, answers.near, strict=True)
    return {
        "r_auroc": [influences.r_auroc(*run) for run in runs],
        "aurc": [influences.aurc(*run) for run in runs],
        "r1": [influences.recall(hit, answers.row, near) for hit, near in found],
    }


def resampled(heads: Sequence[Answers], resamples: int = 1000, seed: str | int = 0) -> list[Draws]:
    """Return the metrics of heads in many draws of their queries, the same draws for all.

    Each draws n of the n queries with replacement. NaN where a metric is undefined, as R-AUROC is
    for a draw without a miss.

    Args:
        heads: answers to the same queries.
        resamples: how many to draw.
        seed: of the draws; sets drawn independently need different ones.

    Raises:
        ValueError: an uncertainty is NaN or infinite.

    Source: the paired bootstrap, Efron and Tibshirani 1993, chapters 8 and 16.

    Example:
        >>> row, hit = np.arange(3), np.array([[True, True, False]])
        >>> orders = np.array([[1.0, 2, 3]]), np.array([[3.0, 2, 1]])
        >>> draws = resampled([Answers(row, u, row[None], hit) for u in orders], resamples=4)
        >>> [each.r_auroc.tolist() for each in draws]
        [[1.0, nan, 1.0, nan], [0.0, nan, 0.0, nan]]
    """
    n, start = len(heads[0].row), 0
    runs = [list(map(_Run.of, head.uncertainty, head.hit)) for head in heads]
    found = [np.empty((len(each), len(Draws._fields), resamples)) for each in runs]
    for count in _counts(n, resamples, seed):
        part = slice(start, start := start + count.shape[1])
        for each, metrics in zip(runs, found, strict=True):
            for run, row in zip(each, metrics, strict=True):
                row[:, part] = run.metrics(count)
    return [Draws(*metrics.mean(axis=0)) for metrics in found]


@dataclass(frozen=True)
class _Run:
    """One seed's queries from certain to uncertain, and where its misses are among them.

    `first` and `last`: of the queries with a miss's own uncertainty, one past the last. `worth`: a
    miss at place p of n is in the risks of all places from p on, which adds 1 / p + ... + 1 / n to
    their sum; the sum of that over the places before each.
    """

    order: Int64[np.ndarray, " n"]
    miss: Int64[np.ndarray, " m"]
    first: Int64[np.ndarray, " m"]
    last: Int64[np.ndarray, " m"]
    worth: Float64[np.ndarray, " n+1"]

    @classmethod
    def of(cls, uncertainty: Float[np.ndarray, " n"], hit: Bool[np.ndarray, " n"]) -> "_Run":
        check_finite(uncertainty)
        order = uncertainty.argsort(kind="stable")
        ordered, miss = uncertainty[order], np.flatnonzero(~hit[order])
        first, last = (np.searchsorted(ordered, ordered[miss], side) for side in ("left", "right"))
        each = (1 / np.arange(1, len(order) + 1))[::-1].cumsum()[::-1]
        return cls(order, miss, first, last, np.append(0, each.cumsum()))

    def metrics(self, count: Int64[np.ndarray, "n r"]) -> tuple[np.ndarray, ...]:
        """Return R-AUROC and AURC, where each query was drawn so often.

        Tied queries share their places. R-AUROC is the mean place of a miss, less the misses
        before it.
        """
        n = len(self.order)
        end = np.zeros((n + 1, count.shape[1]), np.int64)
        drawn = count.take(self.order, axis=0)
        drawn.cumsum(axis=0, out=end[1:])
        drawn = drawn.take(self.miss, axis=0)
        low, high = end.take(self.first, axis=0), end.take(self.last, axis=0)
        wrong = drawn.sum(axis=0)
        places = np.einsum("mr,mr->r", drawn, low + high)  # twice the sum over misses
        share = drawn / np.maximum(high - low, 1)  # of the group, which may have hits
        area = np.einsum("mr,mr->r", share, self.worth[high] - self.worth[low])
        with np.errstate(invalid="ignore"):  # without a miss or a hit it is NaN
            r_auroc = (places - wrong * wrong) / (2 * wrong * (n - wrong))
        return r_auroc, area / n


def _counts(n: int, resamples: int, seed: str | int) -> Iterator[Int64[np.ndarray, "n r"]]:
    """Yield how often each of n queries is in each of some draws, block by block."""
    rng = generator("bootstrap", seed)
    for start in range(0, resamples, BLOCK):
        count = np.empty((n, min(BLOCK, resamples - start)), np.int64)
        for draw in range(count.shape[1]):
            count[:, draw] = np.bincount(rng.integers(n, size=n), minlength=n)
        yield count
