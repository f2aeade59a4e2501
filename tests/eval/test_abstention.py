"""Safe retrieval against its definition, and who is left out of which gallery."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from askance.eval.abstention import Recall, curve, kept, kept_per_class, safe_retrieval
from askance.eval.retrieval import neighbours

few = settings(max_examples=40, deadline=None)
CASES = ("full", "safe gallery", "safe gallery and queries", "safe queries")


@st.composite
def galleries(draw):
    """Embeddings of few values (duplicates and ties abound), labels, and two safe rows or more."""
    n = draw(st.integers(3, 25))
    embedding = draw(arrays(np.float32, (n, 2), elements=st.integers(-2, 2).map(float)))
    label = draw(arrays(np.int64, n, elements=st.integers(0, 3)))
    safe = draw(arrays(bool, n))
    safe[:2] = True
    return embedding, label, draw(st.permutations(range(n)).map(lambda order: safe[order]))


def found_by(query, gallery, embedding):
    """Return the first of the most similar other rows, straight from the definition."""
    rows = embedding.astype(float)
    norm = [math.sqrt(row @ row) or 1.0 for row in rows]
    others = [row for row in np.flatnonzero(gallery).tolist() if row != query]
    cosine = [rows[query] @ rows[row] / (norm[query] * norm[row]) for row in others]
    return others[int(np.argmax(np.round(cosine, 12)))]


@few
@given(galleries())
def test_safe_retrieval_equals_its_definition(case):
    embedding, label, safe = case
    found = safe_retrieval(embedding, label, neighbours(embedding).row, safe)
    every = np.ones_like(safe)
    for name, queries, gallery in zip(
        CASES, (every, every, safe, safe), (every, safe, safe, every), strict=True
    ):
        asked = np.flatnonzero(queries).tolist()
        hits = sum(label[query] == label[found_by(query, gallery, embedding)] for query in asked)
        alone = sum(
            not any(label[row] == label[query] and row != query for row in np.flatnonzero(gallery))
            for query in asked
        )
        assert found[name] == Recall(len(asked), int(gallery.sum()), int(hits), alone)


def test_with_all_rows_kept_the_four_cases_are_one():
    rng = np.random.default_rng(0)
    embedding, label = rng.normal(size=(60, 8)).astype(np.float32), rng.integers(4, size=60)
    nearest = neighbours(embedding).row
    found = safe_retrieval(embedding, label, nearest, np.ones(60, bool))
    assert len(set(found.values())) == 1
    assert found["full"].value == (label == label[nearest]).mean()


def test_a_query_outside_the_gallery_finds_the_row_at_its_own_place_in_it():
    """The published program leaves out a row by the query's place among the queries."""
    embedding = np.array([[1, 0], [0, 1], [1, 0.1], [0.1, 1]], np.float32)
    label = np.array([0, 1, 0, 1])
    safe = np.array([False, True, True, True])  # the first query's neighbour is the gallery's first
    found = safe_retrieval(embedding, label, neighbours(embedding).row, safe)
    assert found["safe gallery"] == Recall(4, 3, 3, 1)  # row 2 has lost its only companion
    assert found["safe gallery and queries"] == Recall(3, 3, 2, 1)
    assert found["safe gallery"].reason == (
        "1 of 4 queries have no other image of their class in the gallery"
    )


def test_a_class_that_vanishes_from_the_gallery_is_missed_and_told():
    embedding = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
    label, safe = np.array([0, 0, 1, 1]), np.array([True, True, False, False])
    found = safe_retrieval(embedding, label, neighbours(embedding).row, safe)
    assert found["safe gallery"] == Recall(4, 2, 2, 2)
    assert found["safe queries"].value == 1
    assert found["safe queries"].reason == ""


def test_no_query_is_no_recall():
    assert math.isnan(Recall(0, 5, 0, 0).value)
    assert Recall(0, 5, 0, 0).reason == "no query"


def test_a_gallery_that_leaves_nothing_to_find_is_refused():
    embedding, label = np.eye(3, dtype=np.float32), np.zeros(3, np.int64)
    nearest = neighbours(embedding).row
    with pytest.raises(ValueError, match="expected at least one safe row, got none"):
        safe_retrieval(embedding, label, nearest, np.zeros(3, bool))
    with pytest.raises(ValueError, match="expected at least two rows, got 1"):
        safe_retrieval(embedding, label, nearest, nearest == 1)


@given(arrays(float, st.integers(1, 40), elements=st.integers(0, 9).map(float)), st.floats(0, 1))
def test_kept_rows_are_those_up_to_the_quantile(uncertainty, share):
    expected = uncertainty <= np.quantile(uncertainty, share, method="lower")
    np.testing.assert_array_equal(kept(uncertainty, share), expected)


@given(st.data(), st.integers(1, 40), st.floats(0, 1))
def test_each_class_is_kept_as_if_it_were_alone(data, n, share):
    uncertainty = data.draw(arrays(float, n, elements=st.floats(-5, 5)))
    label = data.draw(arrays(np.int32, n, elements=st.integers(-2, 2)))
    safe = kept_per_class(uncertainty, label, share)
    for name in np.unique(label):
        own = label == name
        np.testing.assert_array_equal(safe[own], kept(uncertainty[own], share))
        assert safe[own].any()


def test_a_tenth_is_left_out_where_none_tie():
    uncertainty = np.random.default_rng(0).permutation(1001).astype(float)
    assert kept(uncertainty, 0.9).sum() == 901
    assert kept(uncertainty, 1.0).all()
    assert kept(np.zeros(10), 0.1).all()


def test_no_row_keeps_none():
    assert kept(np.zeros(0), 0.9).shape == (0,)


def test_what_has_no_order_and_shares_that_are_none_are_refused():
    with pytest.raises(ValueError, match="expected finite values, got 1 of 2"):
        kept(np.array([0.0, np.inf]), 0.9)
    with pytest.raises(ValueError, match="expected a share to keep from 0 to 1, got 90"):
        kept(np.zeros(2), 90.0)


def test_a_curve_has_a_row_per_share_and_case():
    rng = np.random.default_rng(1)
    label = rng.integers(5, size=200)
    noise = rng.random(200) * 3  # what is noisy is uncertain, and found wrongly
    embedding = (np.eye(5)[label] + rng.normal(size=(200, 5)) * noise[:, None]).astype(np.float32)
    table = curve(embedding, label, noise, (1.0, 0.5))
    assert [(row["share"], row["case"]) for row in table] == [
        (share, case) for share in (1.0, 0.5) for case in CASES
    ]
    assert table[0]["recall"] == table[0]["hits"] / table[0]["queries"]
    assert [row["gallery"] for row in table[4:]] == [200, 100, 100, 200]
    assert table[6]["recall"] > table[7]["recall"] > table[4]["recall"] + 0.1
