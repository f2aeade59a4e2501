"""Remake splits.npz from ../shared/reference/vectors.npz: `python tests/golden/make_splits.py`."""

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_name("splits.npz")
VECTORS = GOLDEN.parents[3] / "shared" / "reference" / "vectors.npz"
ORIGIN = "github.com/mkirchhof/url at eacd47f0: positions that its CUB reader takes of a class"

if __name__ == "__main__":
    vectors = np.load(VECTORS)
    splits = {name: vectors[name] for name in vectors if name.startswith("split.")}
    np.savez_compressed(GOLDEN, origin=ORIGIN, **splits)
