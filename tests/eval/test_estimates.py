"""Estimates are floats; their intervals cover, agree with the bootstrap, and average."""

import copy
import json
import math
import pickle

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from askance.eval import influences
from askance.eval.estimates import (
    Estimate,
    difference,
    mean_over_runs,
    mean_over_sets,
    wilson,
)
from askance.eval.intervals import (
    Difference,
    interval,
    resample,
    weighted_aurc,
    weighted_r_auroc,
)

MEASURES = (
    influences.r_auroc,
    influences.aurc,
    influences.excess_aurc,
    influences.augrc,
    lambda u, hit: influences.share(hit),
    lambda u, hit: influences.spearman(u, u**2 + hit),
    lambda u, hit: influences.accuracy_at_coverage(u, hit, 0.6),
)


def draw(rng, n=300):
    """Hits, and uncertainties that lie one standard deviation higher for misses."""
    hit = rng.random(n) < 0.7
    return rng.normal(~hit * 1.0), hit


def test_an_estimate_is_a_float_that_says_more():
    found = Estimate(0.75, 0.6, 0.9)
    assert isinstance(found, float)
    assert (found + 0.25, found.lower, found.upper, found.reason) == (1, 0.6, 0.9, "")
    assert repr(found) == "0.75 (0.6 to 0.9)"
    assert repr(Estimate(math.nan, reason="no query")) == "nan (no query)"
    assert repr(Estimate(0.5)) == f"{Estimate(0.5)}" == "0.5"
    assert f"{found:.1f}" == "0.8"
    assert json.dumps([found]) == "[0.75]"
    assert pa.array([found]).type == pa.float64()
    assert np.array([found]).dtype == np.float64


def a_difference():
    found = Difference(0.1, 0.0, 0.2)
    found.p_value = 0.04
    return found


@pytest.mark.parametrize("found", [Estimate(0.75, 0.6, 0.9), a_difference(), Estimate(1.0)])
@pytest.mark.parametrize("again", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_an_estimate_survives_copies_and_pickles(found, again):
    twin = again(found)
    assert type(twin) is type(found)
    assert twin == found
    np.testing.assert_equal(vars(twin), vars(found))


@given(st.integers(1, 400), st.data())
def test_the_interval_of_a_share_is_wilsons(n, data):
    flag = np.arange(n) < data.draw(st.integers(0, n))
    expected = stats.binomtest(int(flag.sum()), n).proportion_ci(0.95, "wilson")
    found = influences.share(flag).estimate()
    np.testing.assert_allclose([found.lower, found.upper], expected, rtol=0, atol=1e-9)
    np.testing.assert_allclose(wilson(float(flag.mean()), float(n)), expected, rtol=0, atol=1e-9)


@given(arrays(np.float64, 12, elements=st.integers(-9, 9).map(float)), arrays(bool, 12))
def test_intervals_hold_the_value_and_stay_in_range_and_influences_cancel(u, hit):
    for measure in MEASURES:
        found = measure(u, hit)
        if found.reason:
            continue
        estimate = found.estimate()
        assert found.low <= estimate.lower <= estimate + 1e-12
        assert estimate - 1e-12 <= estimate.upper <= found.high
        np.testing.assert_allclose(found.influence.sum(), 0, atol=1e-9)


@pytest.mark.parametrize("measure", MEASURES[:-1])  # a cutoff moves by steps
def test_influences_foretell_what_a_heavier_row_does(measure):
    u, hit = draw(np.random.default_rng(3), 400)
    found = measure(u, hit)
    for row in range(0, 400, 37):
        rows = np.append(np.arange(400), [row] * 4)
        moved = measure(u[rows], hit[rows]).value - found.value
        np.testing.assert_allclose(moved, found.influence[row] * 4 / 404, rtol=0.05, atol=5e-4)


def test_the_variance_of_accuracy_at_coverage_knows_that_the_cutoff_moves_with_the_rows():
    """Where hits end shortly before the cutoff: without its part the deviation is 0.6 of this."""
    rng, found = np.random.default_rng(0), []
    for _ in range(1000):
        u = rng.random(400)
        hit = rng.random(400) < np.where(u < 0.25, 0.95, 0.05)
        found.append(influences.accuracy_at_coverage(u, hit, 0.3))
    expected = np.var([each.value for each in found])
    np.testing.assert_allclose(np.mean([each.variance for each in found]), expected, rtol=0.15)


@pytest.mark.parametrize("decimals", [0, 12])
@pytest.mark.parametrize(
    ("measure", "weighted"),
    [(influences.r_auroc, weighted_r_auroc), (influences.aurc, weighted_aurc)],
)
def test_intervals_agree_with_the_bootstrap(measure, weighted, decimals):
    u, hit = draw(np.random.default_rng(0), 1000)
    u = u.round(decimals)
    found = measure(u, hit).estimate()
    lower, upper = interval(resample(weighted, u[None], hit, 1000))
    width = upper - lower
    np.testing.assert_allclose([found.lower, found.upper], [lower, upper], rtol=0, atol=0.1 * width)


@pytest.mark.parametrize("measure", [*MEASURES[:4], MEASURES[-1], influences.spearman])
def test_about_95_of_100_intervals_cover_the_truth(measure):
    def columns(rng, n):
        if measure is not influences.spearman:
            return draw(rng, n)
        first = rng.normal(size=n)
        return first, 0.6 * first + 0.8 * rng.normal(size=n)

    rng = np.random.default_rng(0)
    truth = measure(*columns(rng, 500_000)).value
    found = [measure(*columns(rng, 300)).estimate() for _ in range(1000)]
    assert 930 <= sum(each.lower <= truth <= each.upper for each in found) <= 970


def test_the_variance_of_r_auroc_is_delongs():
    u, hit = draw(np.random.default_rng(0), 200)
    pairs = (u[~hit, None] > u[hit]) * 1.0
    misses, hits = pairs.shape
    expected = pairs.mean(1).var() / misses + pairs.mean(0).var() / hits
    found = influences.r_auroc(u, hit)
    np.testing.assert_allclose(found.variance - found.doubt, expected, rtol=1e-9)
    assert 0 < found.doubt < 0.1 * expected


@pytest.mark.parametrize("misses", [1, 2, 5, 10])
def test_intervals_of_r_auroc_cover_with_a_handful_of_misses(misses):
    rng = np.random.default_rng(0)
    truth, hit = stats.norm.cdf(1 / math.sqrt(2)), np.arange(300) >= misses
    found = [influences.r_auroc(rng.normal(~hit * 1.0), hit).estimate() for _ in range(300)]
    assert 0.9 < np.mean([each.lower <= truth <= each.upper for each in found]) < 0.99


def test_at_the_ends_the_rarer_kind_counts():
    hit = np.arange(1000) < 990
    found = influences.r_auroc(-1.0 * hit, hit).estimate()
    assert (found, found.lower, found.upper) == (1, *wilson(1.0, 10.0))


def test_runs_on_the_same_rows_vary_together_and_other_sets_on_their_own():
    u, hit = draw(np.random.default_rng(0))
    one = influences.r_auroc(u, hit)
    both = mean_over_runs([one, one])
    np.testing.assert_allclose(
        [both.estimate().lower, both.estimate().upper],
        [one.estimate().lower, one.estimate().upper],
    )
    sets = mean_over_sets([one, one])
    np.testing.assert_allclose(sets.variance, one.variance / 2)
    assert sets.value == one.value


def test_runs_at_an_end_of_their_range_are_as_sure_as_the_least_sure_of_them():
    u = np.arange(12.0)
    few, many = (influences.r_auroc(u, u < 12 - misses) for misses in (2, 6))
    assert few.value == many.value == 1
    for runs in ([few, many], [many, few]):
        assert mean_over_runs(runs).estimate().lower == wilson(1.0, 2.0)[0]


def test_an_average_over_unequal_sets_and_runs_covers_the_truth():
    rng = np.random.default_rng(0)
    truth = stats.norm.cdf(1 / math.sqrt(2))
    covered = 0
    for _ in range(1000):
        sets = []
        for n in (60, 300):
            u, hit = draw(rng, n)
            noise = rng.normal(size=(2, n)) * 1e-9
            sets.append(mean_over_runs([influences.r_auroc(u + each, hit) for each in noise]))
        found = mean_over_sets(sets).estimate()
        covered += found.lower <= truth <= found.upper
    assert 930 <= covered <= 970


@pytest.mark.parametrize("right", [(0.95, 0.9), (0.99, 0.5), (0.9, 0.999)])
@pytest.mark.parametrize("few", [5, 15])
def test_an_average_covers_the_truth_where_a_small_set_is_all_hits(few, right):
    rng = np.random.default_rng(0)
    covered, at_end = 0, 0
    for _ in range(1000):
        flags = [rng.random(n) < share for n, share in zip((few, 1000), right, strict=True)]
        found = mean_over_sets([influences.share(flag) for flag in flags]).estimate()
        covered += found.lower <= np.mean(right) <= found.upper
        at_end += flags[0].all()
    assert at_end > 200
    assert covered > 900


def test_sets_at_their_ends_count_as_much_as_they_weigh():
    small, large = (influences.share(np.ones(n, bool)) for n in (15, 1000))
    found = mean_over_sets([small, large]).estimate()
    assert found == 1
    assert found.lower == wilson(1.0, 59.0)[0]  # the harmonic mean, twice
    assert mean_over_sets([large, large]).trials == 2000


@pytest.mark.parametrize("mean", [mean_over_runs, mean_over_sets])
def test_undefined_for_one_is_undefined_on_average(mean):
    u, hit = draw(np.random.default_rng(0))
    parts = [influences.r_auroc(u, hit), influences.r_auroc(u, np.ones(300, bool))]
    assert mean(parts).estimate().reason == "no miss among 300 queries"


def test_heads_that_are_equal_but_for_rounding_differ_by_nothing():
    rng = np.random.default_rng(0)
    for _ in range(300):
        hit = rng.random(40) < 0.5
        one = influences.r_auroc(rng.normal(size=40), hit)
        found = difference(mean_over_runs([one, one, one]), one).estimate()
        assert found == pytest.approx(0, abs=1e-12)
        assert found.upper - found.lower < 1e-3


def test_a_perfect_head_leaves_the_doubt_of_its_few_misses():
    hit = np.arange(23) >= 3
    perfect = influences.r_auroc(-1.0 * hit, hit)
    good = influences.r_auroc(-1.0 * (np.arange(23) >= 5), hit)
    found = difference(perfect, good).estimate()
    assert found.lower < 0 < found < found.upper
