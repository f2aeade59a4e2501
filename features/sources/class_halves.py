"""Class halves: the splits of the URL benchmark (arXiv 2307.03810) for CUB and CARS.

The first half of the classes is for choosing, `train` and `val`; the second, which share no class
with them, is `test`.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np


def class_halves(classes: Sequence[str], ordered: Sequence[str], test: str) -> list[str]:
    """Return the split of each image.

    Args:
        classes: each image's class; those of one class are in the order of their file names.
        ordered: the classes, once each, in the order that is halved.
        test: what becomes of the images of the second half of the classes, see `splits_of_test`.
    """
    counts = Counter(classes)
    splits = {}
    for number, name in enumerate(ordered):
        pool = number < len(ordered) // 2
        found = splits_of_pool(counts[name]) if pool else splits_of_test(counts[name], test)
        splits[name] = iter(found)
    return [next(splits[name]) for name in classes]


def splits_of_pool(count: int) -> list[str]:
    """Return the splits of a class's `count` images: evenly spread ones are `train`, half of them.

    Positions are rounded to the nearest, halfway to the even one, as the benchmark does.
    """
    train = set(np.round(np.linspace(0, count - 1, count // 2)).astype(int).tolist())
    return ["train" if position in train else "val" for position in range(count)]


def splits_of_test(count: int, test: str) -> list[str]:
    """Return the splits of a test class's `count` images, in the order of their file names.

    With `whole` all are `test`. With `halves` they are, by turns, `trainontest` and `testontest`:
    the benchmark's upper bound trains on the one and tests on the other.

    Raises:
        ValueError: neither of the two.
    """
    if test not in ("whole", "halves"):
        raise ValueError(f"expected test=whole or test=halves, got test={test}")
    if test == "whole":
        return ["test"] * count
    return ["testontest" if position % 2 else "trainontest" for position in range(count)]
