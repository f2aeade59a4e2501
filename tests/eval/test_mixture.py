"""Laws and failures of the mixture of known and new images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from askance.metrics import hits, mixed_r_auroc, mixture, ood_auroc, r_auroc, union_label

LABELS = arrays(np.int64, st.integers(0, 20), elements=st.integers(-3, 2**40))


def a_set(seed, n, classes=3):
    rng = np.random.default_rng(seed)
    embedding = rng.normal(size=(n, 3)).astype(np.float32)
    return embedding, rng.integers(classes, size=n), rng.normal(size=n)


@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 60), st.integers(0, 9))
def test_a_mixture_has_equal_parts_without_replacement(upstream, downstream, limit, seed):
    first, second = mixture(upstream, downstream, seed, limit)
    assert len(first) == len(second) == min(upstream, downstream, limit)
    for rows, n in ((first, upstream), (second, downstream)):
        assert (np.diff(rows) > 0).all()
        assert len(rows) == 0 or (rows[0] >= 0 and rows[-1] < n)
        if len(rows) == n:
            np.testing.assert_array_equal(rows, np.arange(n))


def test_a_mixture_depends_on_its_seed_alone_and_draws_all_rows_alike():
    np.testing.assert_array_equal(mixture(100, 30, 5)[0], mixture(100, 30, 5)[0])
    assert (mixture(100, 30, 5)[0] != mixture(100, 30, 6)[0]).any()
    drawn = np.bincount(np.concatenate([mixture(50, 10, seed)[0] for seed in range(2000)]))
    assert (np.abs(drawn - 400) < 5 * np.sqrt(400)).all()


@given(LABELS, LABELS)
def test_labels_stay_apart_between_sets_and_as_they_are_within(upstream, downstream):
    found = union_label(upstream, downstream)
    known, new = found[: len(upstream)], found[len(upstream) :]
    assert not set(known.tolist()) & set(new.tolist())
    for label, mine in ((upstream, known), (downstream, new)):
        np.testing.assert_array_equal(label[:, None] == label, mine[:, None] == mine)


def test_mixed_r_auroc_is_r_auroc_in_the_union():
    upstream, downstream = a_set(0, 80), a_set(1, 50)
    first, second = mixture(80, 50, 4, 40)
    embedding = np.concatenate([upstream[0][first], downstream[0][second]])
    label = np.concatenate([upstream[1][first], downstream[1][second] + 100])
    uncertainty = np.concatenate([upstream[2][first], downstream[2][second]])
    found = mixed_r_auroc(upstream, downstream, seed=4, limit=40)
    assert found == r_auroc(uncertainty, hits(embedding, label))
    assert len(embedding) == 80


def test_an_empty_set_leaves_no_query():
    assert mixed_r_auroc(a_set(0, 20), a_set(1, 0)).reason == "no query"


def test_ood_auroc_equals_sklearn_for_sets_of_any_size():
    known, new = np.random.default_rng(0).normal(size=200).round(1)[:150], np.full(7, 0.3)
    expected = roc_auc_score(np.arange(157) >= 150, np.concatenate([known, new]))
    np.testing.assert_allclose(ood_auroc(known, new), expected, rtol=1e-12)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="expected no negative number of rows, got -1 upstream"):
        mixture(-1, 5)
    embedding, label, uncertainty = a_set(0, 20)
    uncertainty[3] = np.nan
    with pytest.raises(ValueError, match="expected finite values, got 1 of 40"):
        mixed_r_auroc((embedding, label, uncertainty), a_set(1, 20))
    with pytest.raises(ValueError, match="in uncertainty, got 20 rows and 19: pass columns of"):
        mixed_r_auroc((embedding[1:], label[1:], uncertainty), a_set(1, 20))
