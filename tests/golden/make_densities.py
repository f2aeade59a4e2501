"""Remake densities.npz: numbers that the original program's own functions gave.

Origin: mkirchhof/url, commit eacd47f0, its losses ELK and nivMF and their gradients on small random
inputs, the sampler of nivMF replaced by stored samples.

    python tests/golden/make_densities.py VECTORS.npz
"""

import sys
from pathlib import Path

import numpy as np

PREFIXES = ("elk.d8.", "nivmf.", "contr.features", "contr.unc", "contr.samples")

if __name__ == "__main__":
    vectors = np.load(sys.argv[1])
    chosen = {name: vectors[name] for name in vectors.files if name.startswith(PREFIXES)}
    np.savez_compressed(Path(__file__).with_name("densities.npz"), **chosen)
