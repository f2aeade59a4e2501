"""Doubtful images, classes and labels: by definition, by cleanlab, and by laws."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import spearmanr

from askance.eval.curation import (
    by_class,
    class_agreement,
    class_confidence,
    kinds,
    near_duplicates,
    ranks,
    suggested,
    suspects,
)
from askance.eval.retrieval import neighbours

SETS = st.integers(1, 30).flatmap(
    lambda n: st.tuples(
        arrays(np.float64, n, elements=st.sampled_from([-1.5, 0.0, 0.25, 3.0])),
        arrays(np.int32, n, elements=st.integers(3, 6)),
        arrays(np.bool_, n),
    )
)


def noisy(seed, n=300, c=4):
    """Return cross-fitted-like probabilities of n images, and labels of which some are wrong."""
    random = np.random.default_rng(seed)
    true = random.integers(c, size=n)
    logits = random.normal(size=(n, c))
    logits[np.arange(n), true] += 4 * random.random(n)
    label = np.where(random.random(n) < 0.15, random.integers(c, size=n), true)
    probability = np.exp(logits)
    return probability / probability.sum(axis=1, keepdims=True), label


@given(SETS)
def test_a_rank_is_the_number_of_rows_of_the_class_that_come_before(given):
    uncertainty, label, _ = given
    rank = ranks(uncertainty, label)
    for row, (u, own) in enumerate(zip(uncertainty, label, strict=True)):
        mates = [other for other in range(len(label)) if label[other] == own]
        before = [i for i in mates if uncertainty[i] > u or (uncertainty[i] == u and i < row)]
        assert rank[row] == len(before)


@given(SETS)
def test_the_table_of_classes_is_that_of_each_class_on_its_own(given):
    uncertainty, label, hit = given
    found = by_class(uncertainty, hit, label)
    assert found.label.tolist() == sorted(set(label.tolist()))
    for row, own in enumerate(found.label):
        mine = np.flatnonzero(label == own)
        assert found.count[row] == len(mine)
        assert found.mean[row] == pytest.approx(uncertainty[mine].mean())
        assert found.median[row] == np.median(uncertainty[mine])
        assert found.recall[row] == pytest.approx(hit[mine].mean())
        assert found.uncertain[row] == mine[ranks(uncertainty, label)[mine] == 0][0]
        assert found.certain[row] == mine[ranks(uncertainty, label)[mine] == len(mine) - 1][0]


def test_no_image_is_no_class():
    found = by_class(np.array([]), np.array([], bool), np.array([], np.int32))
    assert all(len(column) == 0 for column in vars(found).values())


def test_classes_agree_as_far_as_scipy_says():
    random = np.random.default_rng(0)
    uncertainty, recall = random.random(40), random.integers(5, size=40) / 4
    expected = spearmanr(uncertainty, 1 - recall).statistic
    assert class_agreement(uncertainty, recall) == (pytest.approx(expected), "")
    assert class_agreement(recall, recall)[0] == -1


@pytest.mark.parametrize(
    ("uncertainty", "recall", "reason"),
    [
        ([], [], "0 class"),
        ([0.5], [0.1], "1 class"),
        ([0.5, 0.6], [1.0, 1.0], "all 2 classes have the same recall"),
        ([0.5, 0.5], [1.0, 0.9], "all 2 classes have the same mean uncertainty"),
    ],
)
def test_an_agreement_that_is_undefined_says_why(uncertainty, recall, reason):
    value, said = class_agreement(np.array(uncertainty, float), np.array(recall, float))
    assert math.isnan(value)
    assert said.startswith(reason)


@given(
    st.integers(2, 25).flatmap(
        lambda n: st.tuples(
            arrays(np.int64, n, elements=st.integers(0, n - 2)),
            arrays(np.float64, n, elements=st.sampled_from([0.2, 0.9, 0.95, 1.0])),
        )
    )
)
def test_groups_are_what_pairs_join_directly_or_through_others(given):
    neighbour, similarity = given
    neighbour = neighbour + (neighbour >= np.arange(len(neighbour)))  # never the row itself
    found = near_duplicates(neighbour, similarity, 0.95)
    close = [(i, int(j)) for i, j in enumerate(neighbour) if similarity[i] >= 0.95]
    pairs = list(zip(found.first.tolist(), found.second.tolist(), strict=True))
    assert sorted(pairs) == sorted({(min(p), max(p)) for p in close})
    group = list(range(len(neighbour)))
    for _ in group:
        for i, j in close:
            group[i] = group[j] = min(group[i], group[j])
    alone = [group.count(g) == 1 for g in group]
    assert found.group.tolist() == [-1 if a else g for g, a in zip(group, alone, strict=True)]


def test_pairs_come_from_the_most_similar_on_and_equal_images_are_exact():
    random = np.random.default_rng(1)
    embedding = random.normal(size=(40, 16)).astype(np.float32)
    embedding[30] = 3 * embedding[2]  # equal but for length
    embedding[31] = embedding[5] + np.float32(0.01) * random.normal(size=16).astype(np.float32)
    found = neighbours(embedding)
    pairs = near_duplicates(found.row, found.similarity, 0.99)
    assert list(zip(pairs.first, pairs.second, strict=True)) == [(2, 30), (5, 31)]
    assert pairs.exact.tolist() == [True, False]
    assert np.flatnonzero(pairs.group >= 0).tolist() == [2, 5, 30, 31]


def test_without_near_duplicates_there_is_no_pair_and_no_group():
    found = near_duplicates(np.array([1, 0]), np.array([0.5, 0.5]), 0.9)
    assert (len(found.first), found.group.tolist()) == (0, [-1, -1])


@pytest.mark.parametrize("seed", range(5))
def test_a_label_is_suspect_by_the_definition_of_confident_learning(seed):
    probability, label = noisy(seed)
    threshold = [probability[label == j, j].mean() for j in range(4)]
    expected = []
    for p, own in zip(probability, label, strict=True):
        confident = [j for j in range(4) if p[j] >= threshold[j] and p[j] > p[own]]
        expected.append(max(confident, key=lambda j: p[j], default=own))
    found = suspects(lambda: [probability], label, 4)
    assert found.suggested.tolist() == expected
    assert 20 < (found.suggested != label).sum() < 120
    np.testing.assert_allclose(class_confidence(found.confidence, label, 4), threshold)
    np.testing.assert_array_equal(found.suggested_confidence, probability[range(300), expected])


@pytest.mark.parametrize("seed", range(5))
def test_cleanlab_finds_the_same_suspects_where_the_likeliest_class_is_a_confident_one(seed):
    """Elsewhere it may suggest a class below its threshold, against equation 1 of its paper."""
    find = pytest.importorskip("cleanlab.filter").find_label_issues
    probability, label = noisy(seed)
    theirs = find(label, probability, filter_by="confident_learning", n_jobs=1)
    own = probability[np.arange(len(label)), label]
    threshold = class_confidence(own, label, 4)
    likeliest = probability.argmax(axis=1)
    confident = probability >= threshold
    same = confident[np.arange(len(label)), likeliest] | ~confident.any(axis=1)
    assert same.sum() > 250
    ours = suggested(probability, label, threshold) != label
    np.testing.assert_array_equal(ours[same], theirs[same])
    assert theirs[same].sum() > 20


@pytest.mark.parametrize("size", [1, 7, 300])
def test_suspects_are_the_same_however_many_images_come_at_a_time(size):
    probability, label = noisy(9)
    blocks = [probability[start : start + size] for start in range(0, 300, size)]
    found, whole = (suspects(lambda b=b: b, label, 4) for b in (blocks, [probability]))
    for ours, expected in zip(vars(found).values(), vars(whole).values(), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_suspects_move_with_the_rows_and_with_the_names_of_the_classes():
    probability, label = noisy(3)
    random = np.random.default_rng(0)
    rows, columns = random.permutation(300), random.permutation(4)
    renamed = columns.argsort()[label]
    found = suspects(lambda: [probability[rows][:, columns]], renamed[rows], 4)
    expected = suspects(lambda: [probability], label, 4).suggested
    np.testing.assert_array_equal(columns[found.suggested], expected[rows])


def test_a_class_without_an_image_is_never_suggested():
    probability = np.array([[0.1, 0.2, 0.7], [0.3, 0.1, 0.6]])
    found = suspects(lambda: [probability], np.array([0, 1]), 3)
    assert found.suggested.tolist() == [1, 0]


def test_a_label_as_probable_as_another_is_not_suspect():
    half = np.array([[0.5, 0.5], [0.5, 0.5]])
    assert suspects(lambda: [half], np.array([0, 1]), 2).suggested.tolist() == [0, 1]


def test_doubt_in_the_image_and_in_its_label_are_told_apart():
    uncertain, suspect = np.array([0, 1, 0, 1], bool), np.array([0, 0, 1, 1], bool)
    assert kinds(uncertain, suspect).tolist() == ["clean", "ambiguous", "mislabelled", "both"]


def test_what_has_no_rank_is_refused():
    values, label = np.array([0.0, np.inf]), np.array([0, 0])
    with pytest.raises(ValueError, match="expected finite"):
        ranks(values, label)
    with pytest.raises(ValueError, match="expected finite"):
        by_class(values, np.array([True, False]), label)
