"""The approximate index: exact where it looks everywhere, and honest where it does not."""

import numpy as np
import pytest

from askance.eval.approximate import approximate
from askance.eval.retrieval import neighbours

ROWS = np.random.default_rng(0).normal(size=(3000, 16)).astype(np.float32)


def test_looking_into_all_lists_finds_the_nearest():
    found, exact = approximate(ROWS, 8, 8, 200), neighbours(ROWS)
    assert (found.neighbours.row == exact.row).mean() > 0.99
    assert (found.checked, found.nearest) == (200, 200)


def test_recall_is_that_of_all_rows_and_similarities_are_exact():
    found, exact = approximate(ROWS, 50, 1, 2000), neighbours(ROWS)
    same = found.neighbours.row == exact.row
    assert 0.2 < same.mean() < 0.9, "too easy, or hopeless"
    assert abs(found.nearest / found.checked - same.mean()) < 0.03
    np.testing.assert_array_equal(found.neighbours.similarity[same], exact.similarity[same])
    assert (found.neighbours.similarity <= exact.similarity).all()
    assert (found.neighbours.row != np.arange(3000)).all()


def test_a_row_alone_in_its_list_has_no_neighbour():
    found = approximate(np.array([[1.0, 0], [-1, 0]], np.float32), 2, 1)
    np.testing.assert_array_equal(found.neighbours.row, -1)
    assert np.isnan(found.neighbours.similarity).all()
    assert (found.checked, found.nearest) == (2, 0)


def test_rows_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 40 rows"):
        approximate(
            np.where(np.arange(40) == 3, np.nan, ROWS[:40, :1].T).T.astype(np.float32), 1, 1
        )
