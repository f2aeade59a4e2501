"""Safe retrieval against its definition, and who is left out of which gallery."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from askance.eval.abstention import (
    SHARES,
    Recall,
    curve,
    kept,
    kept_per_class,
    nearest_safe,
    safe_retrieval,
)
from askance.eval.retrieval import neighbours

few = settings(max_examples=40, deadline=None)
CASES = ("full", "safe gallery", "safe gallery and queries", "safe queries")


@st.composite
def galleries(draw):
    """Embeddings of few values (duplicates and ties abound), labels, a safe row, some queries."""
    n = draw(st.integers(2, 25))
    embedding = draw(arrays(np.float32, (n, 2), elements=st.integers(-2, 2).map(float)))
    label = draw(arrays(np.int64, n, elements=st.integers(0, 3)))
    safe, queries = draw(arrays(bool, n)), draw(arrays(bool, n))
    safe[draw(st.integers(0, n - 1))] = True
    return embedding, label, np.flatnonzero(queries), safe


def retrieved(embedding, label, safe, queries=None):
    """Return safe retrieval from the start, as `curve` does for one rule."""
    queries = np.arange(len(label)) if queries is None else queries
    nearest = neighbours(embedding, queries=queries).row
    among_safe = nearest_safe(embedding, queries, nearest, safe)
    return safe_retrieval(label, queries, nearest, among_safe, safe)


def expected(embedding, label, queries, safe):
    """Return the same, straight from the definition."""
    every, found = np.ones_like(safe), {}
    for name, asked, gallery in zip(
        CASES, (every, every, safe, safe), (every, safe, safe, every), strict=True
    ):
        rows = [query for query in queries.tolist() if asked[query]]
        others = [[r for r in np.flatnonzero(gallery).tolist() if r != row] for row in rows]
        alone = sum(label[row] not in label[rest] for row, rest in zip(rows, others, strict=True))
        hits = sum(
            label[row] == label[found_by(row, rest, embedding)]
            for row, rest in zip(rows, others, strict=True)
            if rest
        )
        found[name] = Recall(len(rows), int(gallery.sum()), int(hits), alone)
    return found


def found_by(query, others, embedding):
    """Return the first of the most similar rows, straight from the definition."""
    rows = embedding.astype(float)
    norm = [math.sqrt(row @ row) or 1.0 for row in rows]
    cosine = [rows[query] @ rows[row] / (norm[query] * norm[row]) for row in others]
    return others[int(np.argmax(np.round(cosine, 12)))]


@few
@given(galleries())
def test_safe_retrieval_equals_its_definition(case):
    embedding, label, queries, safe = case
    assert retrieved(embedding, label, safe, queries) == expected(embedding, label, queries, safe)


def test_with_all_rows_kept_the_four_cases_are_one():
    rng = np.random.default_rng(0)
    embedding, label = rng.normal(size=(60, 8)).astype(np.float32), rng.integers(4, size=60)
    found = retrieved(embedding, label, np.ones(60, bool))
    assert len(set(found.values())) == 1
    assert found["full"].value == (label == label[neighbours(embedding).row]).mean()


def test_a_query_outside_the_gallery_finds_the_row_at_its_own_place_in_it():
    """The published program leaves out a row by the query's place among the queries."""
    embedding = np.array([[1, 0], [0, 1], [1, 0.1], [0.1, 1]], np.float32)
    label = np.array([0, 1, 0, 1])
    safe = np.array([False, True, True, True])  # the first query's neighbour is the gallery's first
    found = retrieved(embedding, label, safe)
    assert found["safe gallery"] == Recall(4, 3, 3, 1)  # row 2 has lost its only companion
    assert found["safe gallery and queries"] == Recall(3, 3, 2, 1)
    assert found["safe gallery"].reason == (
        "1 of 4 queries have no other image of their class in the gallery"
    )


def test_a_class_that_vanishes_from_the_gallery_is_missed_and_told():
    embedding = np.array([[1, 0], [1, 0.1], [0, 1], [0.1, 1]], np.float32)
    label, safe = np.array([0, 0, 1, 1]), np.array([True, True, False, False])
    found = retrieved(embedding, label, safe)
    assert found["safe gallery"] == Recall(4, 2, 2, 2)
    assert found["safe queries"].value == 1
    assert found["safe queries"].reason == ""


def test_no_query_is_no_recall():
    assert math.isnan(Recall(0, 5, 0, 0).value)
    assert Recall(0, 5, 0, 0).reason == "no query"


def test_a_lone_safe_row_finds_none_and_the_others_find_it():
    found = retrieved(
        np.eye(3, dtype=np.float32), np.array([0, 0, 1]), np.array([True, False, False])
    )
    assert found["safe gallery"] == Recall(3, 1, 1, 2)
    assert found["safe gallery and queries"] == Recall(1, 1, 0, 1)


def test_a_gallery_without_a_row_is_refused():
    with pytest.raises(ValueError, match="expected at least one safe row, got none"):
        retrieved(np.eye(3, dtype=np.float32), np.zeros(3, np.int64), np.zeros(3, bool))


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


def noisy():
    """Return embeddings, labels and noise: what is noisy is found wrongly."""
    rng = np.random.default_rng(1)
    label, noise = rng.integers(5, size=200), rng.random(200) * 3
    embedding = np.eye(5)[label] + rng.normal(size=(200, 5)) * noise[:, None]
    return embedding.astype(np.float32), label, noise


@pytest.mark.parametrize("queries", [np.arange(200), np.arange(150, 200), np.arange(0)])
def test_a_curve_is_safe_retrieval_for_every_rule_and_share(queries):
    embedding, label, noise = noisy()
    nearest = neighbours(embedding, queries=queries).row
    table = curve(embedding, label, noise, queries, nearest)
    rules = [("global", keep, kept(noise, keep)) for keep in SHARES]
    rules.append(("per class", 0.9, kept_per_class(noise, label, 0.9)))
    assert len(table) == 4 * len(rules)
    for place, (rule, keep, safe) in enumerate(rules):
        recalls = expected(embedding, label, queries, safe)
        for row, (case, recall) in zip(table[4 * place :], recalls.items(), strict=False):
            np.testing.assert_equal(row.pop("recall"), recall.value)
            assert row == {
                "rule": rule, "keep": keep, "share": safe.mean(), "case": case,
                "queries": recall.queries, "gallery": recall.gallery, "hopeless": recall.hopeless,
                "reason": recall.reason,
            }  # fmt: skip


def test_leaving_out_noise_helps_as_queries():
    embedding, label, noise = noisy()
    queries = np.arange(200)
    table = curve(embedding, label, noise, queries, neighbours(embedding).row)
    half = {row["case"]: row["recall"] for row in table if row["keep"] == 0.5}
    assert half["safe gallery and queries"] > half["safe queries"] > half["full"] + 0.1


def test_only_queries_whose_neighbour_is_left_out_search_again(monkeypatch):
    embedding, label, noise = noisy()
    nearest, asked = neighbours(embedding).row, []

    def counted(rows, *, queries, gallery):
        asked.append(len(queries))
        return neighbours(rows, queries=queries, gallery=gallery)

    monkeypatch.setattr("askance.eval.abstention.neighbours", counted)
    curve(embedding, label, noise, np.arange(200), nearest)
    assert len(asked) == len(SHARES)  # all but the first, and each class
    assert asked[0] == (~kept(noise, 0.95)[nearest]).sum()
    assert asked[4] < (~kept(noise, 0.5)[nearest]).sum()  # some did so at a larger share


def test_ties_keep_more_than_asked():
    embedding, label, _ = noisy()
    table = curve(embedding, label, np.zeros(200), np.arange(200), neighbours(embedding).row)
    assert {row["share"] for row in table} == {1.0}
    assert len({row["recall"] for row in table}) == 1
