"""Work ahead of its consumer: in order, and never more of it than is allowed."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from askance.pipeline.lanes import ahead


@pytest.fixture(scope="module")
def pool():
    with ThreadPoolExecutor(3) as threads:
        yield threads


@given(st.lists(st.integers(0, 30)), st.integers(1, 5), st.integers(1, 60))
def test_results_come_in_order_and_what_waits_is_bounded(pool, sizes, depth, most):
    """`taken` are begun: those that the consumer has not had yet are the ones that wait."""
    taken, had = [], 0

    def items():
        for item in sizes:
            taken.append(item)
            yield item

    for result in ahead(pool, lambda item: -item, items(), depth, lambda item: item, most):
        assert result == -sizes[had]
        waiting = taken[had:]
        assert len(waiting) <= depth
        # The last was taken before it was known to be too much; alone, it may be any size.
        assert sum(waiting[:-1]) <= most
        had += 1
    assert had == len(sizes)


def test_a_failure_comes_in_its_place(pool):
    found = ahead(pool, lambda item: 6 // item, [3, 0, 1], 3)
    assert next(found) == 2
    with pytest.raises(ZeroDivisionError):
        next(found)


def test_what_waits_is_called_off_when_the_consumer_stops():
    begun, go_on = [], threading.Event()

    def work(item):
        begun.append(item)
        if item == 1:
            go_on.wait()

    with ThreadPoolExecutor(1) as pool:
        results = ahead(pool, work, range(10), 4)
        next(results)
        results.close()
        go_on.set()
    assert begun in ([0], [0, 1])
