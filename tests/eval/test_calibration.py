import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from askance.eval.calibration import calibration


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), max_size=60), st.integers(1, 12))
def test_every_image_and_every_error_falls_into_one_bin(pairs, bins):
    percentile = np.array([p for p, _ in pairs], float)
    wrong = np.array([w for _, w in pairs], bool)
    found = calibration(percentile, wrong, bins)
    assert sum(each.images for each in found) == len(pairs)
    errors = [each.images * each.wrong for each in found if each.images]
    assert sum(errors) == pytest.approx(wrong.sum())
    assert [each.stop for each in found[:-1]] == [each.start for each in found[1:]]
    if pairs:
        assert sum(each.share for each in found) == pytest.approx(1)


def test_edges_belong_to_the_bin_above_and_one_to_the_last():
    found = calibration(np.array([0.0, 0.25, 0.5, 0.75, 1.0]), np.zeros(5, bool), bins=4)
    assert [each.images for each in found] == [1, 1, 1, 2]


def test_the_interval_is_wilsons():
    found = calibration(np.full(40, 0.3), np.arange(40) < 12)[3]
    n, p, z = 40, 0.3, norm.ppf(0.975)
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    assert (found.lower, found.upper) == pytest.approx((middle - half, middle + half))


def test_nan_is_left_out_and_an_empty_bin_has_no_rate():
    found = calibration(np.array([0.1, math.nan]), np.array([True, True]), bins=2)
    assert [each.images for each in found] == [1, 0]
    assert found[0].share == 1
    assert math.isnan(found[1].wrong)
    assert math.isnan(found[1].upper)
