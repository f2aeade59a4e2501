"""Estimates: numbers that know their 95 % interval, or why they are undefined.

Comes in: a metric's value and the influence of each row on it. Goes out: an `Estimate`, which is a
float. The interval says how far the value would move with other rows of the same population.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64

Z = 1.959963984540054  # a standard normal number lies within +-Z in 95 of 100 cases


class Estimate(float):
    """A number with its 95 % interval: a float in every other way.

    `lower`, `upper`: the interval's ends, NaN where there is none.
    `reason`: why the number is NaN; "" where it is not.

    Example:
        >>> Estimate(0.75, 0.6, 0.9)
        0.75 (0.6 to 0.9)
        >>> Estimate(math.nan, reason="no query")
        nan (no query)
        >>> round(Estimate(0.75, 0.6, 0.9), 1)
        0.8
    """

    lower: float
    upper: float
    reason: str

    def __new__(
        cls, value: float, lower: float = math.nan, upper: float = math.nan, reason: str = ""
    ) -> "Estimate":
        number = super().__new__(cls, value)
        number.lower, number.upper, number.reason = float(lower), float(upper), reason
        return number

    def __getnewargs__(self) -> tuple[float, float, float, str]:  # type: ignore[override]
        return float(self), self.lower, self.upper, self.reason

    def __repr__(self) -> str:
        if math.isnan(self):
            return f"nan ({self.reason})" if self.reason else "nan"
        if math.isnan(self.lower):
            return f"{float(self):.4g}"
        return f"{float(self):.4g} ({self.lower:.4g} to {self.upper:.4g})"


@dataclass(frozen=True)
class Measurement:
    """A metric's value and what each row contributes to its error.

    `influence`: of a row, the derivative of the value by the row's weight (weights sum to 1): the
    sum of their squares, by n squared, is the variance of the value. Empty where undefined.
    `trials`: at the ends of its range, where the influences vanish, the value is that of so many
    trials.
    `low`, `high`: the ends of its range.
    `doubt`: variance that influences can't show, because they are estimated from few rows.
    """

    value: float
    influence: Float64[np.ndarray, " n"]
    trials: int
    low: float = 0.0
    high: float = 1.0
    reason: str = ""
    doubt: float = 0.0

    @property
    def variance(self) -> float:
        """Of the value, over other rows of the same population."""
        return float(self.influence @ self.influence) / len(self.influence) ** 2 + self.doubt

    def estimate(self) -> Estimate:
        """Return the value with Wilson's interval, for as many trials as have this variance.

        For a plain share it is Wilson's own; that of AUROC has DeLong's variance. It never leaves
        the metric's range.

        Source: Wilson 1927; the infinitesimal jackknife, Jaeckel 1972; DeLong et al. 1988.
        """
        if self.reason:
            return Estimate(math.nan, reason=self.reason)
        lower, upper = wilson(*self.as_share())
        width = self.high - self.low
        return Estimate(self.value, self.low + width * lower, self.low + width * upper)

    def as_share(self) -> tuple[float, float]:
        """Return where the value lies in its range, 0 to 1, and how many trials vary as it does."""
        width = self.high - self.low
        share = (self.value - self.low) / width
        if not 1e-12 < share < 1 - 1e-12:
            return share, float(self.trials)
        variance = self.variance / width**2
        return share, share * (1 - share) / variance if variance else math.inf


def undefined(reason: str, low: float = 0.0) -> Measurement:
    """Return a measurement that is NaN."""
    return Measurement(math.nan, np.empty(0), 0, low, reason=reason)


def wilson(share: float, trials: float) -> tuple[float, float]:
    """Return the 95 % interval of a share of successes among independent trials.

    Source: Wilson 1927.

    Example:
        >>> [round(end, 3) for end in wilson(0.9, 100.0)]
        [0.826, 0.945]
    """
    share = min(max(share, 0.0), 1.0)
    excess = Z * Z / trials
    half = Z * math.sqrt(share * (1 - share) / trials + excess / trials / 4)
    lower = (share + excess / 2 - half) / (1 + excess)
    upper = (share + excess / 2 + half) / (1 + excess)
    return max(0.0, min(lower, share)), min(1.0, max(upper, share))


def mean_over_runs(runs: Sequence[Measurement]) -> Measurement:
    """Average a metric over runs, such as seeds, on the same rows: their errors go together.

    Undefined for one, undefined for all.
    """
    reason = next((run.reason for run in runs if run.reason), "")
    if reason:
        return undefined(reason, runs[0].low)
    return Measurement(
        value=float(np.mean([run.value for run in runs])),
        influence=np.mean([run.influence for run in runs], axis=0),
        trials=min(run.trials for run in runs),
        low=runs[0].low,
        high=runs[0].high,
        doubt=float(np.mean([run.doubt for run in runs])),
    )


def mean_over_sets(sets: Sequence[Measurement]) -> Measurement:
    """Average a metric over sets of different rows: their errors are independent.

    A set at an end of its range, such as 15 hits of 15, may yet lie anywhere in its interval. That
    is its doubt, since its influences vanish. Undefined for one, undefined for all.
    """
    reason = next((each.reason for each in sets if each.reason), "")
    if reason:
        return undefined(reason, sets[0].low)
    rows = sum(len(each.influence) for each in sets)
    scaled = [each.influence * (rows / len(each.influence) / len(sets)) for each in sets]
    return Measurement(
        value=float(np.mean([each.value for each in sets])),
        influence=np.concatenate(scaled),
        trials=round(len(sets) ** 2 / sum(1 / each.trials for each in sets)),
        low=sets[0].low,
        high=sets[0].high,
        doubt=sum(_doubt(each) for each in sets) / len(sets) ** 2,
    )


def _doubt(measured: Measurement) -> float:
    """Return the variance that influences can't show: at an end, as wide as the interval is."""
    if 1e-12 < measured.as_share()[0] < 1 - 1e-12:
        return measured.doubt
    estimate = measured.estimate()
    return ((estimate.upper - estimate.lower) / Z) ** 2


def difference(first: Measurement, second: Measurement) -> Measurement:
    """Subtract two measurements on the same rows: what moves both cancels out.

    Their doubts go together as far as their influences do. Undefined for one, undefined.

    Source: for AUROC, DeLong et al. 1988, section 2.
    """
    width = first.high - first.low
    if reason := first.reason or second.reason:
        return undefined(reason, -width)
    a, b = first.influence, second.influence
    scale = math.sqrt((a @ a) * (b @ b))
    together = float(a @ b) / scale if scale else 0.0
    doubts = _doubt(first), _doubt(second)
    apart = sum(doubts) - 2 * together * math.sqrt(doubts[0] * doubts[1])
    return Measurement(
        value=first.value - second.value,
        influence=a - b,
        trials=min(first.trials, second.trials),
        low=-width,
        high=width,
        doubt=max(0.0, apart),  # equal ones may differ by rounding
    )
