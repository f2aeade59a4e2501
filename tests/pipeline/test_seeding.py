"""Random numbers and orders that depend on names alone."""

from hypothesis import given
from hypothesis import strategies as st

from askance.pipeline.seeding import generator, hashed


@given(st.lists(st.one_of(st.text(), st.integers()), max_size=4), st.text())
def test_random_numbers_depend_on_all_their_names(names, other):
    first = generator(*names).random(4).tolist()
    assert generator(*names).random(4).tolist() == first
    assert generator(*names, other).random(4).tolist() != first


def test_numbers_and_orders_are_the_same_on_every_machine():
    assert generator("view", 0, "k").integers(1000, size=3).tolist() == [967, 496, 917]
    assert hashed(["a", "b", "c", "d"]).tolist() == [2, 0, 1, 3]


@given(st.lists(st.text(), unique=True, max_size=40), st.randoms(use_true_random=False))
def test_any_two_keys_stand_in_the_same_order_whatever_the_others(keys, random):
    order = [keys[place] for place in hashed(keys)]
    some = random.sample(keys, len(keys) // 2)
    assert sorted(order) == sorted(keys)
    assert [some[place] for place in hashed(some)] == [key for key in order if key in some]


def test_keys_in_order_come_out_shuffled():
    order = hashed([f"k{i:04}" for i in range(1000)])
    assert abs((order[1:] > order[:-1]).mean() - 0.5) < 0.05
