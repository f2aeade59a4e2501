"""Selective prediction: answer the most certain queries only, and see what goes wrong among them.

Comes in: uncertainties (larger is less certain) and hits, numpy arrays or torch tensors, one row
per query. Goes out: curves, and `Estimate`s with their 95 % interval over queries. The coverage is
the share of queries answered, the most certain first; the risk is the share of misses among them.
The interval of an area is too narrow where there are few misses (some tens).
"""

import math

import numpy as np
from jaxtyping import Float64

from askance.eval import influences
from askance.eval.columns import Array, columns
from askance.eval.estimates import Estimate
from askance.eval.ranks import levels


def risk_coverage(
    uncertainty: Array, hit: Array
) -> tuple[Float64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Return coverages i / n and the share of misses among the i most certain queries.

    Each of a group of tied queries counts as the group's share of misses, which is the mean over
    all orders of the group. No query: both are empty.

    Raises:
        ValueError: an uncertainty is NaN or infinite, or columns don't match.

    Source: Geifman et al. 2019 (arXiv 1805.08206, section 2); ties are ours.

    Example:
        >>> risk_coverage(np.array([0.2, 0.1, 0.2]), np.array([True, True, False]))[1]
        array([0.        , 0.25      , 0.33333333])
    """
    uncertainty, hit = columns(uncertainty=uncertainty, hit=hit)
    risk = influences.risks(levels(uncertainty), hit)
    return np.arange(1, len(hit) + 1) / len(hit), risk


def aurc(uncertainty: Array, hit: Array) -> Estimate:
    """Return the area under the risk-coverage curve: the mean risk over all n coverages.

    From 0 (no miss) to 1 (no hit); smaller is better, and a useless uncertainty comes to the share
    of misses. NaN without a query.

    Raises:
        ValueError: an uncertainty is NaN or infinite, or columns don't match.

    Source: Geifman et al. 2019 (arXiv 1805.08206, section 2).

    Example:
        >>> float(aurc(np.array([0.1, 0.2]), np.array([True, False])))
        0.25
    """
    uncertainty, hit = columns(uncertainty=uncertainty, hit=hit)
    return influences.aurc(uncertainty, hit).estimate()


def excess_aurc(uncertainty: Array, hit: Array) -> Estimate:
    """Return `aurc` less that of the best order, all hits before all misses.

    From 0 (the best order) towards 1. NaN without a query.

    Raises:
        ValueError: an uncertainty is NaN or infinite, or columns don't match.

    Source: E-AURC, Geifman et al. 2019 (arXiv 1805.08206, section 2), whose best area is the
        approximation r + (1 - r) ln(1 - r) for a risk r; this one is exact for n queries.

    Example:
        >>> float(excess_aurc(np.array([0.2, 0.1]), np.array([True, False])))
        0.5
    """
    uncertainty, hit = columns(uncertainty=uncertainty, hit=hit)
    return influences.excess_aurc(uncertainty, hit).estimate()


def augrc(uncertainty: Array, hit: Array) -> Estimate:
    """Return the mean share, among all queries, of misses that were answered, over all coverages.

    The area under the generalised risk-coverage curve, by trapezoids from coverage 0: the chance
    that of two random queries the first is a miss and not the less certain one, ties one half.
    From 0 (no miss) to 0.5 (no hit); smaller is better. NaN without a query.

    Raises:
        ValueError: an uncertainty is NaN or infinite, or columns don't match.

    Source: Traub et al. 2024 (arXiv 2407.01032, section 3).

    Example:
        >>> float(augrc(np.array([0.1, 0.2]), np.array([True, False])))
        0.125
    """
    uncertainty, hit = columns(uncertainty=uncertainty, hit=hit)
    return influences.augrc(uncertainty, hit).estimate()


def accuracy_at_coverage(uncertainty: Array, hit: Array, coverage: float) -> Estimate:
    """Return the share of hits among the most certain queries, `coverage` of all, rounded up.

    From 0 to 1. Where the last place falls into a group of tied queries, the group answers with
    its share of hits. NaN without a query.

    Raises:
        ValueError: a coverage outside of (0, 1], an uncertainty that is NaN or infinite, or
            columns that don't match.

    Example:
        >>> float(accuracy_at_coverage(np.array([0.1, 0.2]), np.array([True, False]), 0.5))
        1.0
    """
    check_coverage(coverage)
    uncertainty, hit = columns(uncertainty=uncertainty, hit=hit)
    return influences.accuracy_at_coverage(uncertainty, hit, coverage).estimate()


def coverage_at_accuracy(uncertainty: Array, hit: Array, accuracy: float) -> Estimate:
    """Return the largest coverage whose share of hits is at least `accuracy`, 0 to 1.

    A threshold accepts a group of tied queries as a whole. 0 where no threshold does; NaN without
    a query. It is chosen on the same queries and thus optimistic, and has no interval: for a
    promise about new queries see `askance.threshold`.

    Raises:
        ValueError: an accuracy outside of 0 to 1, an uncertainty that is NaN or infinite, or
            columns that don't match.

    Example:
        >>> coverage_at_accuracy(np.array([0.1, 0.2, 0.2]), np.array([True, True, False]), 0.6)
        1
        >>> coverage_at_accuracy(np.array([0.1, 0.2, 0.2]), np.array([True, True, False]), 0.9)
        0.3333
    """
    check_accuracy(accuracy)
    uncertainty, hit = columns(uncertainty=uncertainty, hit=hit)
    level = levels(uncertainty)
    if not len(hit):
        return Estimate(math.nan, reason="no query")
    accepted = np.bincount(level).cumsum()
    right = np.bincount(level, weights=hit).cumsum()
    enough = accepted[right >= accuracy * accepted - 1e-9]  # 0.07 * 100 is 7, and a rounding error
    return Estimate(int(enough[-1]) / len(hit) if len(enough) else 0.0)


def check_coverage(coverage: float) -> None:
    """Stop at coverages outside of (0, 1].

    Raises:
        ValueError: it is one.
    """
    if not 0 < coverage <= 1:
        raise ValueError(f"expected a coverage above 0 and up to 1, got {coverage}: pass a share")


def check_accuracy(accuracy: float) -> None:
    """Stop at accuracies outside of 0 to 1.

    Raises:
        ValueError: it is one.
    """
    if not 0 <= accuracy <= 1:
        raise ValueError(f"expected an accuracy from 0 to 1, got {accuracy}: pass a share")
