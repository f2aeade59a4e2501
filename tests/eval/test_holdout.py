"""The hits of held-out images, by which a checkpoint is chosen: those of the exact search."""

import numpy as np
import pytest
import torch

from askance.eval import holdout
from askance.eval.holdout import hits
from askance.eval.retrieval import neighbours


@pytest.fixture
def rows():
    """Return 60 embeddings of different lengths and their labels, of four classes."""
    random = np.random.default_rng(0)
    embedding = random.normal(size=(60, 5)) * random.uniform(0.1, 10, (60, 1))
    return embedding.astype(np.float32), random.integers(4, size=60)


@pytest.mark.parametrize("at_a_time", [7, 1024])
def test_they_are_those_of_the_exact_search(rows, monkeypatch, at_a_time):
    monkeypatch.setattr(holdout, "AT_A_TIME", at_a_time)
    embedding, label = rows
    found = hits(torch.from_numpy(embedding), torch.from_numpy(label), 25)
    expected = label == label[neighbours(embedding).row]
    np.testing.assert_array_equal(found, expected[:25])
    assert 0 < found.sum() < 25


def test_no_row_is_its_own_neighbour_and_of_equal_ones_the_first_counts():
    embedding = torch.tensor([[1.0, 0], [0, 1], [2, 0], [3, 0]])
    found = hits(embedding, torch.tensor([0, 1, 5, 0]), 4)
    np.testing.assert_array_equal(found, [False, False, False, True])
