"""Choosing what to label: by definition, by laws, and what can't be chosen from."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from askance.eval.selection import diverse, nearest_labelled, representative, uncertain

CHOOSERS = [diverse, representative]


@pytest.fixture
def pool():
    return np.random.default_rng(0).normal(size=(60, 5)).astype(np.float32)


def cosines(embedding):
    unit = embedding.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    return unit @ unit.T


def farthest_first(embedding, chosen, count):
    cosine, chosen = cosines(embedding), list(chosen)
    for _ in range(count):
        nearest = cosine[:, chosen].max(axis=1)
        nearest[chosen] = np.inf
        chosen.append(int(nearest.argmin()))
    return chosen[-count:]


def best_gains(embedding, weight, labelled, count):
    """Choose by full comparison: the row that raises the weighted sum of cosines most."""
    cosine, chosen = cosines(embedding), list(labelled)
    for _ in range(count):
        sums = [
            -np.inf if row in chosen else weight @ cosine[:, [*chosen, row]].max(axis=1)
            for row in range(len(cosine))
        ]
        chosen.append(int(np.argmax(sums)))
    return chosen[-count:]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.data())
def test_the_most_uncertain_come_first_and_of_equals_the_first_row(values, data):
    count = data.draw(st.integers(1, len(values)))
    found = uncertain(np.array(values, float), count)
    by_definition = sorted(range(len(values)), key=lambda row: (-values[row], row))
    assert found.row.tolist() == by_definition[:count]
    assert np.isnan(found.distance).all()


def test_diverse_is_farthest_first_from_the_row_nearest_the_mean_direction(pool):
    found = diverse(pool, 20).row.tolist()
    unit = pool / np.linalg.norm(pool, axis=1, keepdims=True)
    assert found[0] == (unit @ unit.mean(axis=0)).argmax()
    assert found[1:] == farthest_first(pool, found[:1], 19)


def test_diverse_starts_from_what_is_labelled(pool):
    nearest = nearest_labelled(pool, np.array([7, 3, 7]))
    found = diverse(pool, 10, nearest).row.tolist()
    assert found == farthest_first(pool, [3, 7], 10)
    np.testing.assert_array_equal(nearest, nearest_labelled(pool, np.array([3, 7])))  # as it was


@pytest.mark.parametrize("labelled", [[], [7], [9, 2, 9, 40], list(range(60))])
def test_what_is_labelled_covers_as_by_full_comparison(pool, labelled):
    told = []
    found = nearest_labelled(pool, np.array(labelled, np.int64), told.append)
    left = np.setdiff1d(np.arange(60), labelled)
    assert np.isposinf(found[labelled]).all()
    expected = cosines(pool)[np.ix_(left, labelled)].max(axis=1, initial=-1)
    np.testing.assert_allclose(found[left], expected, atol=1e-12)
    assert sum(told) == (len(left) if labelled else 0)


def farthest(embedding, chosen):
    """Return the distance of the row that is farthest from all chosen."""
    return 1 - cosines(embedding)[:, chosen].max(axis=1).min()


@given(st.integers(0, 10**6), st.integers(2, 8), st.integers(1, 3), st.booleans())
def test_diverse_leaves_no_row_over_four_times_as_far_as_the_best_choice(seed, n, count, labelled):
    random = np.random.default_rng(seed)
    rows = random.normal(size=(n + 1, 2)).astype(np.float32)
    rows += random.choice([0, 9]) * np.float32(1)  # all round the circle, or in an arc
    known, count = [n] if labelled else [], min(count, n)
    chosen = [*diverse(rows, count, nearest_labelled(rows, np.array(known, np.int64))).row, *known]
    best = min(farthest(rows, [*some, *known]) for some in combinations(range(n + 1), count))
    assert farthest(rows, chosen) <= 4 * best + 1e-6
    angle, least = np.arccos(1 - np.array([farthest(rows, chosen), best]).clip(0))
    assert angle <= 2 * least + 1e-3


def test_diverse_can_leave_a_row_nearly_four_times_as_far_as_the_best_choice():
    angle = np.linspace(-0.2, 0.2, 9)
    arc = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    best = farthest(arc, [2, 6])
    assert best == min(farthest(arc, some) for some in map(list, combinations(range(9), 2)))
    assert farthest(arc, diverse(arc, 2).row) / best == pytest.approx(3.99, abs=0.01)


@pytest.mark.parametrize("labelled", [[], [5, 9]])
@pytest.mark.parametrize("weighted", [False, True])
def test_representative_is_the_greedy_choice_by_full_comparison(pool, labelled, weighted):
    pool = pool + np.float32(0.7)
    weight = np.random.default_rng(1).random(len(pool)) if weighted else np.ones(len(pool))
    nearest = nearest_labelled(pool, np.array(labelled, np.int64))
    found = representative(pool, 25, weight if weighted else None, nearest)
    assert found.row.tolist() == best_gains(pool, weight, labelled, 25)


def test_a_weight_of_zero_everywhere_else_leaves_one_row_to_represent(pool):
    weight = np.zeros(len(pool))
    weight[17] = 1.0
    assert representative(pool, 1, weight).row.tolist() == [17]


def test_representative_does_not_care_how_many_rows_are_compared_at_a_time(pool, monkeypatch):
    whole = representative(pool, 20).row
    monkeypatch.setattr("askance.eval.selection.AT_A_TIME", 7)
    np.testing.assert_array_equal(representative(pool, 20).row, whole)


@pytest.mark.parametrize("choose", CHOOSERS)
def test_the_choice_moves_with_the_rows_and_not_with_their_lengths(choose, pool):
    random = np.random.default_rng(2)
    order, length = random.permutation(len(pool)), random.uniform(0.1, 9, size=(len(pool), 1))
    moved = choose((pool * length.astype(np.float32))[order], 15).row
    np.testing.assert_array_equal(order[moved], choose(pool, 15).row)


@pytest.mark.parametrize("choose", CHOOSERS)
def test_a_larger_choice_begins_with_the_smaller_and_all_rows_are_chosen_once(choose, pool):
    everything = choose(pool, len(pool)).row
    np.testing.assert_array_equal(choose(pool, 9).row, everything[:9])
    assert sorted(everything) == list(range(len(pool)))


@pytest.mark.parametrize("choose", CHOOSERS)
def test_distances_are_to_the_nearest_labelled_or_chosen_before(choose, pool):
    found = choose(pool, 5, nearest=nearest_labelled(pool, np.array([11])))
    before, cosine = [11], cosines(pool)
    for row, distance in zip(found.row, found.distance, strict=True):
        assert distance == pytest.approx(1 - cosine[row, before].max(), abs=1e-6)
        before.append(row)
    alone = choose(pool, 2).distance
    assert np.isnan(alone[0])
    assert alone[1] > 0


def test_of_equally_far_rows_the_first_is_chosen_wherever_they_stand():
    far = np.random.default_rng(3).normal(size=(501, 129)).astype(np.float32)
    twice = np.concatenate([far, far])  # a matrix product would round some copies otherwise
    assert diverse(twice, 400).row.max() < 501
    labelled = np.arange(80, dtype=np.int64)
    assert diverse(twice, 300, nearest_labelled(twice, labelled)).row.max() < 501


@pytest.mark.parametrize("choose", CHOOSERS)
def test_copies_of_what_is_labelled_are_chosen_rather_than_it(choose, pool):
    twice = np.concatenate([pool[:6], pool[:6]])
    assert sorted(choose(twice, 6, nearest=nearest_labelled(twice, np.arange(6))).row) == list(
        range(6, 12)
    )


@pytest.mark.parametrize("choose", CHOOSERS)
def test_copies_of_a_chosen_row_come_last_and_are_no_distance_away(choose, pool):
    found = choose(np.concatenate([pool[:6], pool[:6]]), 12)
    assert len({row % 6 for row in found.row[:6].tolist()}) == 6
    np.testing.assert_allclose(found.distance[6:], 0, atol=1e-6)


@pytest.mark.parametrize("choose", CHOOSERS)
def test_a_zero_vector_can_be_chosen(choose, pool):
    pool[4] = 0
    found = choose(pool, len(pool))
    assert 4 in found.row
    assert np.isfinite(found.distance[1:]).all()


@pytest.mark.parametrize("choose", CHOOSERS)
def test_each_row_chosen_is_told(choose, pool):
    told = []
    choose(pool, 7, advance=told.append)
    assert told == [1] * 7


@pytest.mark.parametrize("choose", CHOOSERS)
def test_more_than_the_rows_without_a_label_can_not_be_chosen(choose, pool):
    with pytest.raises(ValueError, match="count from 1 to the 58 rows without a label, got 59"):
        choose(pool, 59, nearest=nearest_labelled(pool, np.array([0, 1])))
    with pytest.raises(ValueError, match="got 0"):
        choose(pool, 0)
    with pytest.raises(ValueError, match="count from 1 to the 3 rows"):
        uncertain(np.arange(3.0), 4)


@pytest.mark.parametrize("choose", CHOOSERS)
def test_a_row_that_is_not_finite_is_named(choose, pool):
    pool[[8, 20], 1] = np.nan
    with pytest.raises(ValueError, match="infinity in 2 of 60 rows, the first is row 8"):
        choose(pool, 2)
    with pytest.raises(ValueError, match="infinity in 2 of 60 rows, the first is row 8"):
        nearest_labelled(pool, np.array([3]))


def test_uncertainties_and_weights_must_have_a_meaning(pool):
    with pytest.raises(ValueError, match="expected finite"):
        uncertain(np.array([0.0, np.nan]), 1)
    with pytest.raises(ValueError, match=r"weights that are not negative, got -1\.0"):
        representative(pool, 2, np.r_[-1.0, np.ones(59)])
    with pytest.raises(ValueError, match="weights that are not negative, got nan"):
        representative(pool, 2, np.r_[np.nan, np.ones(59)])
