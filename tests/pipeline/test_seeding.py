"""Random orders that depend on names alone."""

from hypothesis import given
from hypothesis import strategies as st

from askance.pipeline.seeding import hashed


@given(st.lists(st.text(), unique=True, max_size=40), st.randoms(use_true_random=False))
def test_any_two_keys_stand_in_the_same_order_whatever_the_others(keys, random):
    order = [keys[place] for place in hashed(keys)]
    some = random.sample(keys, len(keys) // 2)
    assert sorted(order) == sorted(keys)
    assert [some[place] for place in hashed(some)] == [key for key in order if key in some]


def test_keys_in_order_come_out_shuffled():
    order = hashed([f"k{i:04}" for i in range(1000)])
    assert abs((order[1:] > order[:-1]).mean() - 0.5) < 0.05
