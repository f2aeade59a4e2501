"""Work done ahead of its consumer, by threads, in order and with bounded memory."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[T], R],
    items: Iterable[T],
    depth: int,
    size: Callable[[T], int] = lambda _: 0,
    most: int = 0,
) -> Iterator[R]:
    """Map in order over threads, at most `depth` items and `most` bytes ahead of the consumer.

    `size` tells an item's bytes; one that alone has more than `most` goes alone.
    """
    waiting: deque[tuple[Future[R], int]] = deque()
    held = 0
    try:
        for item in items:
            waiting.append((pool.submit(function, item), size(item)))
            held += waiting[-1][1]
            while waiting and (len(waiting) >= depth or held > most):
                future, bytes_ = waiting.popleft()
                held -= bytes_
                yield future.result()
        while waiting:
            yield waiting.popleft()[0].result()
    finally:
        for future, _ in waiting:
            future.cancel()
