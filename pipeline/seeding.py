"""Random numbers and orders that depend on names, not on the order of calls."""

import hashlib
import json
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64


def generator(*names: str | int) -> np.random.Generator:
    """Return a generator that depends on `names` alone, on every machine and in every process."""
    text = json.dumps(names)  # unlike a plain join, tells ("a", "b") from ("ab",)
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest())
    return np.random.Generator(np.random.PCG64(seed))


def hashed(keys: Sequence[str]) -> Int64[np.ndarray, " n"]:
    """Return the places of keys in a random order that depends on them alone.

    Any two stand in the same order whatever others come or go.
    """
    hashes = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys]
    return np.argsort(np.frombuffer(b"".join(hashes), ">u8"), kind="stable")
