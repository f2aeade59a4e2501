"""Remake classifiers.npz: numbers that the original program's own functions gave.

Origin: mkirchhof/url, commit eacd47f0, its cross-entropy, entropy, shallow ensemble, HET-XL and GP
layers, run on small random inputs, with stored noise in place of its draws; the log-determinant of
the whole covariance was computed beside it, for contrast.

    python tests/golden/make_classifiers.py VECTORS.npz
"""

import sys
from pathlib import Path

import numpy as np

PREFIXES = ("ce.", "ens.", "hetxl.", "gp.", "entropy_extreme.")
PREFIXES += ("losspred.logits", "losspred.target", "uncmod.features")  # the inputs of ce and ens

if __name__ == "__main__":
    vectors = np.load(sys.argv[1])
    chosen = {name: vectors[name] for name in vectors.files if name.startswith(PREFIXES)}
    np.savez_compressed(Path(__file__).with_name("classifiers.npz"), **chosen)
