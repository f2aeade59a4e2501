"""Remake heads.npz: numbers that the original program's own functions gave.

Origin: mkirchhof/url, commit eacd47f0, its ranking loss, squared loss, MLP head, entropy, 1 / norm,
learning-rate schedule and a short training, run on small random inputs.

    python tests/golden/make_heads.py VECTORS.npz
"""

import sys
from pathlib import Path

import numpy as np

PREFIXES = ("lossorder.", "losspred.", "head.", "lr.pvu", "lr.url_ce_rn50_32", "traj.", "uncmod.")

if __name__ == "__main__":
    vectors = np.load(sys.argv[1])
    chosen = {name: vectors[name] for name in vectors.files if name.startswith(PREFIXES)}
    np.savez_compressed(Path(__file__).with_name("heads.npz"), **chosen)
