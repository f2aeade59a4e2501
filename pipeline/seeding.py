"""Random numbers that depend on names, not on the order of calls."""

import hashlib
import json

import numpy as np


def generator(*names: str | int) -> np.random.Generator:
    """Return a generator that depends on `names` alone, on every machine and in every process."""
    text = json.dumps(
        names
    )  # unlike a plain join, tells ("a", "b") from ("ab",) whatever they hold
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest())
    return np.random.Generator(np.random.PCG64(seed))
