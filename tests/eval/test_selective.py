"""Laws, oracles and failures of curves and areas of selective prediction."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from askance.eval.selective import (
    accuracy_at_coverage,
    augrc,
    aurc,
    coverage_at_accuracy,
    excess_aurc,
    risk_coverage,
)

AREAS = (aurc, excess_aurc, augrc)


@st.composite
def queries(draw, most=30):
    n = draw(st.integers(1, most))
    uncertainty = draw(arrays(np.float64, n, elements=st.integers(-4, 4).map(float)))
    return uncertainty, draw(arrays(bool, n))


def orders(uncertainty, hit):
    """Yield the hits from certain to uncertain, for every order of tied ones."""
    for order in itertools.permutations(range(len(hit))):
        yield hit[sorted(order, key=lambda i: uncertainty[i])]


@given(queries(most=6))
def test_curves_and_areas_are_means_over_all_orders_of_tied_queries(case):
    uncertainty, hit = case
    n, place = len(hit), np.arange(1, len(hit) + 1)
    risks = np.mean([(~by).cumsum() / place for by in orders(*case)], axis=0)
    coverage, risk = risk_coverage(uncertainty, hit)
    np.testing.assert_allclose(coverage, place / n)
    np.testing.assert_allclose(risk, risks, rtol=0, atol=1e-12)
    np.testing.assert_allclose(aurc(uncertainty, hit), risks.mean(), rtol=0, atol=1e-12)
    best = (np.sort(~hit).cumsum() / place).mean()
    np.testing.assert_allclose(excess_aurc(*case), risks.mean() - best, rtol=0, atol=1e-12)
    generalised = np.append(0, risks * coverage)
    np.testing.assert_allclose(
        augrc(uncertainty, hit), np.trapezoid(generalised, dx=1 / n), rtol=0, atol=1e-12
    )
    for accepted in place:
        found = accuracy_at_coverage(uncertainty, hit, float(accepted / n))
        np.testing.assert_allclose(found, 1 - risks[accepted - 1], rtol=0, atol=1e-12)


@given(queries())
def test_augrc_is_the_chance_of_a_pair_whose_first_is_a_more_certain_miss(case):
    uncertainty, hit = case
    first, second = uncertainty[:, None], uncertainty
    pairs = ~hit[:, None] * ((first < second) + (first == second) / 2)
    np.testing.assert_allclose(augrc(uncertainty, hit), pairs.mean(), rtol=0, atol=1e-12)


@given(queries(), st.integers(0, 10).map(lambda tenths: tenths / 10))
def test_coverage_at_accuracy_is_the_largest_of_all_thresholds(case, accuracy):
    uncertainty, hit = case
    accepted = [uncertainty <= threshold for threshold in uncertainty]
    enough = [rows.mean() for rows in accepted if hit[rows].mean() >= accuracy - 1e-9]
    found = coverage_at_accuracy(uncertainty, hit, accuracy)
    assert found == pytest.approx(max(enough, default=0.0), abs=1e-12)


@given(queries(), st.randoms(use_true_random=False))
def test_neither_increasing_maps_nor_the_order_of_rows_matter(case, random):
    uncertainty, hit = case
    rows = random.sample(range(len(hit)), len(hit))
    for metric in AREAS:
        found = metric(uncertainty, hit)
        for again in (metric(uncertainty**3 + 7, hit), metric(uncertainty[rows], hit[rows])):
            np.testing.assert_allclose(
                [again, again.lower, again.upper],
                [found, found.lower, found.upper],
                rtol=0, atol=1e-9,
            )  # fmt: skip


@given(queries())
def test_ranges_of_the_areas(case):
    assert 0 <= aurc(*case) <= 1
    assert 0 <= excess_aurc(*case) <= aurc(*case)
    assert 0 <= augrc(*case) <= 0.5


def test_areas_of_hits_only_misses_only_and_a_useless_uncertainty():
    same, hit = np.zeros(8), np.arange(8) < 6
    assert [metric(same, np.ones(8, bool)) for metric in AREAS] == [0, 0, 0]
    assert [metric(same, np.zeros(8, bool)) for metric in AREAS] == [1, 0, 0.5]
    assert (aurc(same, hit), augrc(same, hit)) == (0.25, 0.125)
    assert excess_aurc(-1.0 * hit, hit) == 0


def test_a_share_times_a_count_may_be_off_by_rounding():
    hit = np.arange(100) < 7
    assert accuracy_at_coverage(np.arange(100.0), hit, 0.07) == 1  # 0.07 * 100 > 7
    assert coverage_at_accuracy(np.arange(100.0), hit, 0.07) == 1


def test_without_a_query_all_is_undefined_with_a_reason():
    none, no = np.empty(0), np.empty(0, bool)
    assert len(risk_coverage(none, no)[1]) == 0
    found = [metric(none, no) for metric in AREAS]
    found += [accuracy_at_coverage(none, no, 0.5), coverage_at_accuracy(none, no, 0.5)]
    assert all(math.isnan(each) and each.reason == "no query" for each in found)


def test_shares_outside_their_range_are_refused():
    one, hit = np.zeros(1), np.ones(1, bool)
    for coverage in (0.0, 1.1, math.nan):
        with pytest.raises(ValueError, match="expected a coverage above 0 and up to 1, got"):
            accuracy_at_coverage(one, hit, coverage)
    for accuracy in (-0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match="expected an accuracy from 0 to 1, got"):
            coverage_at_accuracy(one, hit, accuracy)


@pytest.mark.parametrize("metric", [*AREAS, risk_coverage])
def test_uncertainties_that_are_not_finite_are_never_ranked(metric):
    with pytest.raises(ValueError, match=r"got 1 of 2 that are not, the first in row 1 \(nan\)"):
        metric(np.array([0.0, np.nan]), np.array([True, False]))
