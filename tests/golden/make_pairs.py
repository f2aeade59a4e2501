"""Remake pairs.npz: numbers that the original program's own functions gave.

Origin: mkirchhof/url, commit eacd47f0, its InfoNCE, MCInfoNCE and HIB losses with their gradients,
run on small random inputs, with stored samples in place of its sampler. HIB is the corrected form:
the submission that made URL's numbers has another sign and term.

    python tests/golden/make_pairs.py VECTORS.npz
"""

import sys
from pathlib import Path

import numpy as np

PREFIXES = ("contr.", "infonce.", "mcinfonce.", "hib.", "vmfargs.")

if __name__ == "__main__":
    vectors = np.load(sys.argv[1])
    chosen = {name: vectors[name] for name in vectors.files if name.startswith(PREFIXES)}
    np.savez_compressed(Path(__file__).with_name("pairs.npz"), **chosen)
