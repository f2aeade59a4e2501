"""Laws, oracles and failures of ranks and the numbers that follow from them."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats
from sklearn.metrics import roc_auc_score

from askance.eval.ranks import auroc, below, levels, midranks, spearman

TYPES = (np.float16, np.float32, np.float64)


@st.composite
def scored(draw):
    """Uncertainties of any float type, hostile ones included, and labels of both kinds."""
    kind = draw(st.sampled_from(TYPES))
    width = 8 * np.dtype(kind).itemsize
    few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5])
    element = few | st.floats(allow_nan=False, allow_infinity=False, width=width)
    score = draw(arrays(kind, st.integers(2, 30), elements=element))
    positive = draw(arrays(bool, len(score)))
    positive[:2] = True, False
    return score, positive


@given(scored())
def test_auroc_equals_its_definition_at_any_scale_and_precision(case):
    score, positive = case
    pairs = list(itertools.product(score[positive].tolist(), score[~positive].tolist()))
    wins = sum((above > below) + (above == below) / 2 for above, below in pairs)
    assert auroc(score, positive) == wins / len(pairs)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("decimals", [0, 2, 12])
def test_auroc_of_many_rows_equals_sklearn(kind, decimals):
    rng = np.random.default_rng(0)
    score = rng.normal(size=50_000).round(decimals).astype(kind)
    positive = rng.random(50_000) < 0.3
    expected = roc_auc_score(positive, score.astype(np.float64))
    np.testing.assert_allclose(auroc(score, positive), expected, rtol=0, atol=1e-12)


def test_close_float64_scores_stay_apart_and_signed_zeros_together():
    close = np.array([1.0, 1.0 + 2**-52])
    assert auroc(close, np.array([False, True])) == 1
    for kind in TYPES:
        assert auroc(np.array([0.0, -0.0], kind), np.array([False, True])) == 0.5


def test_large_and_tiny_scores_are_ranked_exactly():
    positive = np.array([False, True, True, False])
    for scale in (1e-12, 1.0, 1e30):
        for kind in (np.float32, np.float64):
            score = (scale * np.array([20.0, 40.0, 30.0, -1.0])).astype(kind)
            assert auroc(score, positive) == 1
    assert auroc(np.array([187.0, 187.001, 188.0, 186.0], np.float32), positive) == 1


def test_auroc_leaves_its_input_alone():
    score = np.array([3.0, -1.0, 2.0], np.float32)
    auroc(score, np.array([True, False, True]))
    np.testing.assert_array_equal(score, [3, -1, 2])


@pytest.mark.parametrize("positive", [[], [True], [False, False]])
def test_auroc_of_one_kind_only_is_nan(positive):
    assert math.isnan(auroc(np.arange(len(positive)) / 1.0, np.array(positive, bool)))


@given(scored())
def test_levels_number_the_distinct_values(case):
    values, _ = case
    np.testing.assert_array_equal(levels(values), np.unique(values, return_inverse=True)[1])
    assert levels(values).dtype == np.int64


@given(arrays(np.float32, st.integers(0, 40), elements=st.integers(-5, 5).map(float)))
def test_midranks_equal_scipy(values):
    np.testing.assert_array_equal(midranks(values), stats.rankdata(values))


@given(arrays(np.float64, st.integers(0, 12), elements=st.integers(-3, 3).map(float)))
def test_the_weight_below_is_that_of_lower_rows_and_half_of_ties(values):
    weight = np.arange(len(values)) - 3.0
    pairs = (values[:, None] > values) + (values[:, None] == values) / 2
    np.testing.assert_array_equal(below(levels(values), weight), pairs @ weight)


@given(arrays(np.float64, st.integers(2, 40), elements=st.integers(-5, 5).map(float)))
def test_spearman_equals_scipy(first):
    second = np.random.default_rng(0).permutation(first)
    if len(np.unique(first)) > 1:
        expected = stats.spearmanr(first, second)[0]
        np.testing.assert_allclose(spearman(first, second), expected, rtol=0, atol=1e-12)


def test_spearman_is_right_with_large_groups_of_ties():
    rng = np.random.default_rng(0)
    first = rng.integers(19, size=200_000).astype(np.float32)
    second = first + rng.integers(19, size=200_000)
    expected = stats.spearmanr(first, second)[0]
    np.testing.assert_allclose(spearman(first, second), expected, rtol=1e-12)


def test_spearman_is_one_of_a_rising_and_minus_one_of_a_falling_pair():
    values = np.random.default_rng(0).normal(size=50)
    assert spearman(values, values**3) == 1
    assert spearman(values, -values) == -1


@pytest.mark.parametrize("values", [[], [1.0], [2.0, 2.0, 2.0]])
def test_spearman_with_a_constant_is_nan(values):
    assert math.isnan(spearman(np.array(values), np.arange(len(values)) / 1.0))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", TYPES)
def test_values_that_are_not_finite_are_never_ranked(value, kind):
    values = np.array([0.0, 1.0, value, value], kind)
    with pytest.raises(
        ValueError, match=r"got 2 of 4 that are not, the first in row 2 \(-?(nan|inf)"
    ):
        midranks(values)
    with pytest.raises(ValueError, match="got 2 of 4"):
        auroc(values, np.array([True, False, True, False]))
