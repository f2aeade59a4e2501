"""Remake eval.npz from ../shared/reference/vectors.npz: `python tests/golden/make_eval.py`."""

from pathlib import Path

import numpy as np

GOLDEN = Path(__file__).with_name("eval.npz")
VECTORS = GOLDEN.parents[3] / "shared" / "reference" / "vectors.npz"
ORIGIN = "github.com/mkirchhof/url at eacd47f0: its own functions run on small random inputs"
WANTED = ("r1.", "auroc.", "val.soft.")

if __name__ == "__main__":
    vectors = np.load(VECTORS)
    names = [name for name in vectors if name.startswith(WANTED)]
    np.savez_compressed(GOLDEN, origin=ORIGIN, **{name: vectors[name] for name in names})
