"""The order of TensorFlow Datasets, without it: VTAB's training and validation sets are its slices.

TFDS writes the examples of a split sorted by the MD5 of the split's name and the example's key
(`tensorflow_datasets/core/{hashing,shuffle}.py`), and VTAB takes the first 80 or 90 % of them.
"""

import hashlib
from collections.abc import Sequence

Key = str | int  # what a TFDS builder yields beside an example


def order(keys: Sequence[Key], split: str = "train") -> list[int]:
    """Return the rows of a TFDS split in its order."""
    salted = hashlib.md5(split.encode(), usedforsecurity=False)

    def place(row: int) -> bytes:
        salt = salted.copy()
        salt.update(str(keys[row]).encode())
        return salt.digest()

    return sorted(range(len(keys)), key=place)


def deal(keys: Sequence[Key], **percent: int) -> list[str]:
    """Return the part of each example of the TFDS split `train`, which is cut as `percent` says.

    The last part takes what the others, rounded down, leave.
    """
    *named, last = percent
    parts = [last] * len(keys)
    ordered = order(keys)
    start = 0
    for name in named:
        end = start + percent[name] * len(keys) // 100
        for row in ordered[start:end]:
            parts[row] = name
        start = end
    return parts
