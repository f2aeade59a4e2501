"""Laws, oracles, golden numbers and failures of the metrics."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.metrics import roc_auc_score

from askance.eval.metrics import (
    aurc,
    auroc,
    crop_win_rate,
    midranks,
    r_auroc,
    risk_coverage,
    spearman,
    undefined,
)

settings.register_profile("unhurried", deadline=None)  # a busy machine is no failure
settings.load_profile("unhurried")

GOLDEN = Path(__file__).parents[1] / "golden" / "eval.npz"


@st.composite
def queries(draw, most=40):
    """Uncertainties with ties, and hits: at least one of either kind."""
    n = draw(st.integers(2, most))
    uncertainty = draw(arrays(np.float64, n, elements=st.integers(-5, 5).map(float)))
    hit = draw(arrays(bool, n))
    hit[:2] = True, False
    return uncertainty, hit


@st.composite
def mapped(draw):
    """Queries, and the same under an arbitrary increasing map."""
    uncertainty, hit = draw(queries())
    levels, group = np.unique(uncertainty, return_inverse=True)
    finite = st.floats(allow_nan=False, allow_infinity=False)
    image = draw(st.lists(finite, min_size=len(levels), max_size=len(levels), unique=True))
    return uncertainty, np.array(sorted(image))[group], hit


@given(arrays(np.float32, st.integers(0, 40), elements=st.integers(-5, 5).map(float)))
def test_midranks_equal_scipy(values):
    np.testing.assert_array_equal(midranks(values), stats.rankdata(values))


@given(queries())
def test_r_auroc_equals_its_definition_and_sklearn(case):
    uncertainty, hit = case
    pairs = list(itertools.product(uncertainty[~hit], uncertainty[hit]))
    wins = sum((miss > hit) + (miss == hit) / 2 for miss, hit in pairs)
    np.testing.assert_allclose(r_auroc(uncertainty, hit), wins / len(pairs), rtol=1e-12)
    np.testing.assert_allclose(
        r_auroc(uncertainty, hit), roc_auc_score(~hit, uncertainty), rtol=1e-12
    )


@given(mapped())
def test_any_increasing_map_leaves_r_auroc_and_aurc(case):
    uncertainty, image, hit = case
    assert r_auroc(image, hit) == r_auroc(uncertainty, hit)
    assert aurc(image, hit) == aurc(uncertainty, hit)


@given(queries())
def test_negation_turns_r_auroc_round(case):
    uncertainty, hit = case
    np.testing.assert_allclose(
        r_auroc(-uncertainty, hit), 1 - r_auroc(uncertainty, hit), rtol=0, atol=1e-15
    )


def test_equal_uncertainties_are_a_coin():
    assert r_auroc(np.full(7, 3.0), np.arange(7) < 2) == 0.5


def test_large_and_tiny_scores_are_ranked_exactly():
    positive = np.array([False, True, True, False])
    for scale in (1e-12, 1.0, 1e30):
        assert auroc(scale * np.array([20.0, 40.0, 30.0, -1.0]), positive) == 1
    assert auroc(np.array([187.0, 187.001, 188.0, 186.0], np.float32), positive) == 1


def test_float32_ranks_are_summed_in_float64():
    rng = np.random.default_rng(0)
    score = rng.normal(size=200_000).astype(np.float32).round(2)
    positive = rng.random(200_000) < 0.5
    np.testing.assert_allclose(auroc(score, positive), roc_auc_score(positive, score), rtol=1e-12)


@pytest.mark.parametrize(
    ("hit", "reason"),
    [
        ([True] * 40, "no miss among 40 queries"),
        ([False] * 3, "no hit among 3 queries"),
        ([], "no query"),
        ([True, False], ""),
    ],
)
def test_undefined_r_auroc_is_nan_with_a_reason(hit, reason):
    hit = np.array(hit, bool)
    assert undefined(hit) == reason
    assert math.isnan(r_auroc(np.arange(len(hit)) / 1.0, hit)) == bool(reason)


@given(queries())
def test_spearman_equals_scipy(case):
    first = case[0]
    second = np.random.default_rng(0).permutation(first)
    if len(np.unique(first)) > 1:
        np.testing.assert_allclose(
            spearman(first, second), stats.spearmanr(first, second)[0], rtol=0, atol=1e-12
        )


def test_spearman_is_right_with_large_groups_of_ties():
    rng = np.random.default_rng(0)
    first = rng.integers(19, size=200_000).astype(np.float32)
    second = first + rng.integers(19, size=200_000)
    np.testing.assert_allclose(
        spearman(first, second), stats.spearmanr(first, second)[0], rtol=1e-12
    )


def test_spearman_is_one_of_a_rising_and_minus_one_of_a_falling_pair():
    values = np.random.default_rng(0).normal(size=50)
    assert spearman(values, values**3) == 1
    assert spearman(values, -values) == -1


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0]])
def test_spearman_with_a_constant_is_nan(values):
    assert math.isnan(spearman(np.array(values), np.arange(len(values)) / 1.0))


@given(queries(most=6))
def test_risk_is_the_mean_over_all_orders_of_tied_queries(case):
    uncertainty, hit = case
    risks = []
    for order in itertools.permutations(range(len(hit))):
        by = sorted(order, key=lambda i: uncertainty[i])
        risks.append([np.mean(~hit[by[: i + 1]]) for i in range(len(hit))])
    coverage, risk = risk_coverage(uncertainty, hit)
    np.testing.assert_allclose(coverage, (np.arange(len(hit)) + 1) / len(hit))
    np.testing.assert_allclose(risk, np.mean(risks, axis=0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(aurc(uncertainty, hit), np.mean(risks), rtol=0, atol=1e-12)


def test_aurc_of_hits_only_misses_only_and_a_useless_uncertainty():
    same, hit = np.zeros(8), np.arange(8) < 6
    assert aurc(same, np.ones(8, bool)) == 0
    assert aurc(same, np.zeros(8, bool)) == 1
    assert aurc(same, hit) == 0.25


def test_empty_curves_are_empty_and_their_means_nan():
    none, no = np.empty(0), np.empty(0, bool)
    assert len(risk_coverage(none, no)[1]) == 0
    assert math.isnan(aurc(none, no))
    assert math.isnan(crop_win_rate(none, none))


def test_a_crop_wins_only_if_strictly_less_certain():
    plain, cropped = np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.2, 0.2, 0.1, 0.9])
    assert crop_win_rate(plain, cropped) == 0.5


@pytest.mark.parametrize("case", ["ties", "all_correct", "none_correct", "large"])
def test_corner_cases_of_the_published_auroc(case):
    golden = np.load(GOLDEN)
    hit = golden[f"auroc.{case}.correct"].astype(bool)
    theirs = float(golden[f"auroc.{case}.torchmetrics_f32"])
    ours = r_auroc(golden[f"auroc.{case}.unc"], hit)
    if case == "ties":
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    elif case == "large":  # theirs: a float32 sigmoid makes ties of 110, 120 and 130
        assert (ours, theirs) == (1, 0.5)
    else:  # theirs: 0, for want of a miss or a hit
        assert math.isnan(ours)
        assert theirs == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("metric", [r_auroc, aurc, risk_coverage])
def test_uncertainties_that_are_not_finite_are_never_ranked(metric, value):
    uncertainty = np.array([0.0, 1.0, value, value], np.float32)
    with pytest.raises(
        ValueError, match=r"got 2 of 4 that are not, the first in row 2 \(-?(nan|inf)"
    ):
        metric(uncertainty, np.array([True, False, True, False]))


@pytest.mark.parametrize("metric", [spearman, crop_win_rate])
def test_neither_of_two_columns_may_be_nan(metric):
    good, bad = np.arange(3.0), np.array([0.0, np.nan, 1.0])
    for columns in [(good, bad), (bad, good)]:
        with pytest.raises(
            ValueError, match=r"got 1 of 3 that are not, the first in row 1 \(nan\)"
        ):
            metric(*columns)
