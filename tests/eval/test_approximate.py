"""The approximate index: exact where it looks everywhere, and honest where it does not."""

import numpy as np
import pytest

from askance.eval import approximate as module
from askance.eval.approximate import approximate
from askance.eval.retrieval import neighbours

ROWS = np.random.default_rng(0).normal(size=(3000, 16)).astype(np.float32)


class Unread:
    """Rows on a disk, as it were, which only come in runs."""

    def __init__(self, embedding):
        self.embedding, self.shape = embedding, embedding.shape

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        return self.embedding[rows]


def test_looking_into_all_lists_finds_the_nearest():
    found, exact = approximate(ROWS, 8, probes=8, check=200), neighbours(ROWS)
    assert (found.neighbours.row == exact.row).mean() > 0.99
    assert found.recall == found.recall.upper == 1
    assert 0.97 < found.recall.lower < 1


def test_recall_is_that_of_all_rows_and_similarities_are_exact():
    found, exact = approximate(ROWS, 50, probes=1, check=2000), neighbours(ROWS)
    same = found.neighbours.row == exact.row
    assert 0.2 < same.mean() < 0.9, "too easy, or hopeless"
    assert found.recall.lower < same.mean() < found.recall.upper
    assert found.recall.upper - found.recall.lower < 0.05
    np.testing.assert_array_equal(found.neighbours.similarity[same], exact.similarity[same])
    assert (found.neighbours.similarity <= exact.similarity).all()
    assert (found.neighbours.row != np.arange(3000)).all()


def test_rows_on_disk_come_in_runs_and_give_what_rows_in_memory_do(monkeypatch):
    queries, counts = np.arange(0, 3000, 7), []
    whole = approximate(ROWS, 50, queries=queries, probes=2)
    monkeypatch.setattr(module, "HELD", 100 * module.NARROW)
    monkeypatch.setattr(module, "AT_ONCE", 256 * 16)
    stored = Unread(ROWS)
    found = approximate(stored, 50, counts.append, queries=queries, probes=2)
    np.testing.assert_array_equal(found.neighbours.row, whole.neighbours.row)
    np.testing.assert_array_equal(found.neighbours.similarity, whole.neighbours.similarity)
    assert found.recall == whole.recall < 1
    assert (sum(counts), len(counts)) == (len(queries), 5)


def test_of_equal_rows_the_first_is_found():
    embedding = np.tile(ROWS[:500], (3, 1))
    found = approximate(embedding, 4, probes=4).neighbours
    np.testing.assert_array_equal(found.row[500:], np.tile(np.arange(500), 2))
    np.testing.assert_array_equal(found.row[:500], np.arange(500, 1000))


def test_a_row_alone_in_its_list_is_searched_exactly():
    found = approximate(np.array([[1.0, 0], [-1, 0]], np.float32), 2, probes=1)
    np.testing.assert_array_equal(found.neighbours.row, [1, 0])
    np.testing.assert_array_equal(found.neighbours.similarity, -1)


def test_rows_that_are_not_finite_are_refused():
    embedding = ROWS[:40].copy()
    embedding[3] = np.nan
    with pytest.raises(ValueError, match="NaN or infinity in 1 of 40 rows"):
        approximate(embedding, 1)


@pytest.mark.parametrize("lists", [0, 41])
def test_more_lists_than_rows_are_refused(lists):
    with pytest.raises(ValueError, match=f"expected 1 to 40 lists for 40 rows, got {lists}: take"):
        approximate(ROWS[:40], lists)
