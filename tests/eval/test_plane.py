"""Laws of the plane: near stays near, equal input gives equal bits, and the corners are finite."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.manifold import trustworthiness
from threadpoolctl import threadpool_limits

from askance.eval.plane import FLAT, plane


def clusters(count=5, of=25, spread=0.1, seed=0):
    """Return directions around `count` orthogonal axes, of random lengths, and whose they are."""
    rng = np.random.default_rng(seed)
    axis = np.repeat(np.arange(count), of)
    rows = np.eye(count, 16)[axis] + spread * rng.normal(size=(len(axis), 16))
    return (rows * rng.uniform(0.1, 10, size=(len(axis), 1))).astype(np.float32), axis


def nearest(point):
    distance = np.linalg.norm(point[:, None] - point, axis=-1)
    np.fill_diagonal(distance, np.inf)
    return distance.argmin(axis=1)


def test_images_that_are_alike_lie_together():
    rows, axis = clusters()
    found = plane(rows)
    assert (axis[nearest(found.point)] == axis).all()
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    shuffled = np.random.default_rng(0).permutation(found.point)
    assert found.trustworthiness > 0.95 > 0.6 > trustworthiness(unit, shuffled, n_neighbors=10)


def test_trustworthiness_is_that_of_cosines():
    rows, _ = clusters(spread=1.0)
    found = plane(rows)
    oracle = trustworthiness(rows, found.point, n_neighbors=10, metric="cosine")
    assert found.trustworthiness == pytest.approx(oracle, abs=1e-3)


def test_the_lengths_of_embeddings_do_not_matter():
    rows, _ = clusters()
    np.testing.assert_array_equal(plane(rows).point, plane(rows * np.float32(4)).point)


def test_equal_input_gives_equal_bits_whatever_threads_are_allowed():
    rows = np.random.default_rng(0).normal(size=(100, 768)).astype(np.float32)
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.append(plane(rows).point.tobytes())
    assert len(set(found)) == 1


@settings(max_examples=12)
@given(
    st.integers(1, 24),
    st.integers(1, 24),
    st.integers(2, 5),
    st.integers(0, 9),
)
def test_few_rows_and_copies_of_rows_have_finite_points(n, distinct, width, seed):
    rows = np.random.default_rng(seed).normal(size=(distinct, width)).astype(np.float32)
    rows = rows[np.arange(n) % distinct]
    found = plane(rows)
    assert found.point.shape == (n, 2)
    assert found.point.dtype == np.float32
    assert np.isfinite(found.point).all()
    trivial = n <= FLAT or distinct == 1
    assert found.perplexity == (0 if trivial else min(30, (n - 1) / 3))
    assert np.isnan(found.trustworthiness) == (trivial or n <= 20)


def test_up_to_three_rows_keep_their_distances_and_equal_ones_lie_in_one_point():
    rows = np.random.default_rng(0).normal(size=(3, 8)).astype(np.float32)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    point = plane(rows).point
    for i in range(3):
        for j in range(3):
            expected = np.linalg.norm(unit[i] - unit[j])
            assert np.linalg.norm(point[i] - point[j]) == pytest.approx(expected, abs=1e-6)
    assert not plane(np.ones((50, 8), np.float32)).point.any()
    assert not plane(np.zeros((50, 8), np.float32)).point.any()
