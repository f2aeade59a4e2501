"""Laws, oracles and failures of the bootstrap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from askance.eval import influences
from askance.eval.intervals import (
    compare,
    difference,
    interval,
    resample,
    weighted_aurc,
    weighted_r_auroc,
)
from askance.eval.metrics import r_auroc
from askance.eval.selective import aurc
from askance.pipeline.seeding import generator

settings.register_profile("unhurried", deadline=None)  # a busy machine is no failure
settings.load_profile("unhurried")

PAIRS = [(weighted_r_auroc, r_auroc), (weighted_aurc, aurc)]


def a_case(n=40, runs=3, levels=9):
    rng = np.random.default_rng(0)
    hit = rng.random(n) < 0.6
    uncertainty = rng.integers(levels, size=(runs, n)) - 2.0 * hit
    return uncertainty, hit


@given(st.data())
@pytest.mark.parametrize(("weighted", "plain"), PAIRS)
def test_weights_stand_for_repeated_queries(weighted, plain, data):
    n = data.draw(st.integers(1, 20))
    uncertainty = np.sort(data.draw(arrays(np.float64, n, elements=st.integers(0, 6).map(float))))
    hit = data.draw(arrays(bool, n))
    drawn = data.draw(arrays(np.int64, (3, n), elements=st.integers(0, n - 1)))
    start = np.unique(uncertainty, return_index=True)[1]
    for each in drawn:
        found = weighted(np.bincount(each, minlength=n), ~hit, start)
        expected = plain(uncertainty[each], hit[each])
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("weighted", "plain"), PAIRS)
def test_resamples_equal_a_plain_loop_over_the_same_draws(weighted, plain):
    uncertainty, hit = a_case()
    rng = generator("bootstrap", 7)
    values = []
    for _ in range(50):
        drawn = rng.integers(len(hit), size=len(hit))
        values.append(np.mean([plain(run[drawn], hit[drawn]) for run in uncertainty]))
    found = resample(weighted, uncertainty, hit, resamples=50, seed=7)
    np.testing.assert_allclose(found, values, rtol=0, atol=1e-12)


@given(st.lists(st.floats(-1e300, 1e300), min_size=15, max_size=15, unique=True))
@pytest.mark.parametrize("weighted", [weighted_r_auroc, weighted_aurc])
def test_any_increasing_map_leaves_the_resamples(weighted, image):
    uncertainty, hit = a_case()
    levels, group = np.unique(uncertainty, return_inverse=True)
    mapped = np.array(sorted(image)[: len(levels)])[group.reshape(uncertainty.shape)]
    np.testing.assert_array_equal(
        resample(weighted, mapped, hit, 40), resample(weighted, uncertainty, hit, 40)
    )


def test_runs_and_heads_share_their_draws_and_seeds_do_not():
    uncertainty, hit = a_case()
    each = [resample(weighted_aurc, run[None], hit, 40) for run in uncertainty]
    together = resample(weighted_aurc, uncertainty, hit, 40)
    np.testing.assert_allclose(together, np.mean(each, axis=0), rtol=0, atol=1e-12)
    assert (together != resample(weighted_aurc, uncertainty, hit, 40, seed="birds")).any()


def test_resamples_without_a_miss_are_nan_and_dropped():
    uncertainty, hit = np.arange(30.0)[None], np.arange(30) < 29
    rng = generator("bootstrap", 0)
    without = [(rng.integers(30, size=30) != 29).all() for _ in range(200)]
    assert 0 < sum(without) < 200
    found = resample(weighted_r_auroc, uncertainty, hit, 200)
    np.testing.assert_array_equal(np.isnan(found), without)
    assert interval(found) == (1, 1)
    assert np.isfinite(resample(weighted_aurc, uncertainty, hit, 200)).all()


@pytest.mark.parametrize("n", [0, 5])
def test_without_any_miss_the_interval_is_nan(n):
    found = resample(weighted_r_auroc, np.zeros((2, n)), np.ones(n, bool), 20)
    np.testing.assert_array_equal(found, np.full(20, np.nan))
    np.testing.assert_array_equal(interval(found), np.nan)


def test_about_95_of_100_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    truth = stats.norm.cdf(1 / np.sqrt(2))  # misses lie one standard deviation above hits
    covered = 0
    for seed in range(300):
        hit = rng.random(150) < 0.6
        found = resample(weighted_r_auroc, rng.normal(~hit)[None], hit, 200, seed)
        lower, upper = interval(found)
        covered += lower <= truth <= upper
    assert 0.90 < covered / 300 < 0.98


def test_uncertainties_that_are_not_finite_are_never_ranked():
    uncertainty, hit = a_case()
    uncertainty[1, 5] = np.nan
    with pytest.raises(ValueError, match=r"got 1 of 120 that are not, the first in row 5 \(nan\)"):
        resample(weighted_r_auroc, uncertainty, hit)


def test_a_comparison_is_a_paired_bootstrap_of_any_metric():
    uncertainty, hit = a_case()
    first, second = uncertainty[:2]
    rng = generator("bootstrap", 3)
    drawn = [rng.integers(40, size=40) for _ in range(60)]
    for metric in (r_auroc, aurc, lambda u, h: float(u[h].mean())):
        values = [
            metric(first[rows], hit[rows]) - metric(second[rows], hit[rows]) for rows in drawn
        ]
        found = compare(first, second, hit, metric, resamples=60, seed=3)
        assert found == metric(first, hit) - metric(second, hit)
        expected = interval(np.array(values))
        np.testing.assert_allclose([found.lower, found.upper], expected, rtol=0, atol=1e-12)


def test_equal_heads_do_not_differ_and_a_perfect_one_beats_a_coin():
    uncertainty, hit = a_case(200)
    same = compare(uncertainty[0], uncertainty[0] * 2, hit, resamples=50)
    assert (same, same.lower, same.upper, same.p_value) == (0, 0, 0, 1)
    better = compare(-1.0 * hit, np.zeros(200), hit, resamples=99)
    assert (better, better.p_value) == (0.5, 0.02)
    worse = compare(np.zeros(200), -1.0 * hit, hit, resamples=99)
    assert (worse, worse.p_value) == (-0.5, 0.02)


def test_p_values_of_equally_good_heads_are_small_as_rarely_as_they_should():
    rng = np.random.default_rng(0)
    small = 0

    def distance(uncertainty, hit):
        return float(uncertainty[~hit].mean() - uncertainty[hit].mean())

    for seed in range(200):
        hit = rng.random(100) < 0.6
        first, second = rng.normal(size=(2, 100)) - hit
        small += compare(first, second, hit, distance, 100, seed).p_value < 0.05
    assert 2 <= small <= 22


def two_heads(rng, n, misses=None):
    """Two heads with much in common, the first the better one."""
    hit = rng.random(n) < 0.7 if misses is None else np.arange(n) >= misses
    common = rng.normal(size=n)
    first, second = (common + rng.normal(size=n) - gap * hit for gap in (1.2, 0.9))
    return first, second, hit


@pytest.mark.parametrize(
    ("measure", "metric"), [(influences.r_auroc, r_auroc), (influences.aurc, aurc)]
)
@pytest.mark.parametrize("decimals", [0, 12])
def test_a_difference_by_influences_agrees_with_the_paired_bootstrap(measure, metric, decimals):
    first, second, hit = two_heads(np.random.default_rng(1), 1000)
    first, second = first.round(decimals), second.round(decimals)
    found = difference(first, second, hit, measure)
    drawn = compare(first, second, hit, metric)
    width = drawn.upper - drawn.lower
    assert found == pytest.approx(drawn, abs=1e-12)
    np.testing.assert_allclose(
        [found.lower, found.upper], [drawn.lower, drawn.upper], rtol=0, atol=0.1 * width
    )
    alone = [metric(u, hit) for u in (first, second)]
    assert width < 0.9 * np.hypot(*(each.upper - each.lower for each in alone))


@pytest.mark.parametrize("n", [30, 400])
def test_about_95_of_100_differences_cover_the_truth(n):
    rng = np.random.default_rng(0)
    truth = stats.norm.cdf(1.2 / 2) - stats.norm.cdf(0.9 / 2)  # a row's sd is the root of 2
    found = [difference(*two_heads(rng, n)) for _ in range(600)]
    assert 0.92 < np.mean([each.lower <= truth <= each.upper for each in found]) < 0.98


@pytest.mark.parametrize("misses", [4, 8])
def test_differences_cover_with_a_handful_of_misses(misses):
    rng = np.random.default_rng(0)
    truth = stats.norm.cdf(1.2 / 2) - stats.norm.cdf(0.9 / 2)
    found = [difference(*two_heads(rng, 300, misses)) for _ in range(400)]
    covered = np.mean([each.lower <= truth <= each.upper for each in found])
    assert 0.9 < covered < 0.99


def test_a_difference_is_significant_where_its_interval_leaves_out_zero():
    rng = np.random.default_rng(0)
    found = [difference(*two_heads(rng, n)) for n in (20, 50, 100, 200, 400) for _ in range(20)]
    small = [each.p_value < 0.05 for each in found]
    assert 10 < sum(small) < 90
    assert small == [each.lower > 0 or each.upper < 0 for each in found]


def test_a_difference_of_equal_heads_is_none_and_two_queries_prove_nothing():
    uncertainty, hit = a_case(200)
    same = difference(uncertainty[0], uncertainty[0] * 2, hit)
    assert (same, same.lower, same.upper, same.p_value) == (0, 0, 0, 1)
    both = np.array([True, False])
    found = difference(-1.0 * both, 1.0 * both, both)
    assert (found, found.upper) == (1, 1)
    assert found.p_value > 0.2


@pytest.mark.parametrize("call", [compare, difference])
def test_what_cannot_be_compared_says_why(call):
    found = call(np.arange(5.0), np.zeros(5), np.ones(5, bool))
    assert np.isnan(found)
    assert found.reason == "no miss among 5 queries"
    with pytest.raises(ValueError, match="in second, got 4 rows and 5"):
        call(np.zeros(5), np.zeros(4), np.ones(5, bool))
