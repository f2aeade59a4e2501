"""Remake vmf.npz: von Mises-Fisher numbers at 60 digits, and those of the original program.

Origin of `exact.*`: mpmath's Bessel functions I_{D/2-1} and I_{D/2}, one row per dimension and one
column per concentration. Of `published.*`: mkirchhof/url, commit eacd47f0, its approximation of
log C, run on these dimensions and concentrations.

    python tests/golden/make_vmf.py VECTORS.npz
"""

import sys
from pathlib import Path

import mpmath
import numpy as np

DIMS = (2, 3, 4, 8, 10, 16, 32, 64, 192, 384, 512, 768, 1024, 1280, 2048)
KAPPA = (1e-3, 1e-2, 0.1, 1, 3, 10, 12, 30, 100, 300, 1e3, 3e3, 1e4, 3e4, 1e5)


def exact(dim, concentration):
    """Return log C_D, the mean cosine A_D and its derivative."""
    order, kappa = mpmath.mpf(dim) / 2 - 1, mpmath.mpf(concentration)
    # The real part: half-integer orders come as complex numbers.
    lower, upper = (mpmath.re(mpmath.besseli(order + one, kappa)) for one in (0, 1))
    log = order * mpmath.log(kappa) - (order + 1) * mpmath.log(2 * mpmath.pi) - mpmath.log(lower)
    cosine = upper / lower
    return float(log), float(cosine), float(1 - cosine**2 - (dim - 1) / kappa * cosine)


if __name__ == "__main__":
    mpmath.mp.dps = 60
    values = np.array([[exact(dim, kappa) for kappa in KAPPA] for dim in DIMS])
    vectors = np.load(sys.argv[1])
    np.savez_compressed(
        Path(__file__).with_name("vmf.npz"),
        **{"exact.dims": DIMS, "exact.kappa": KAPPA},
        **{
            f"exact.{name}": values[..., i]
            for i, name in enumerate(("log_normaliser", "mean_cosine", "slope"))
        },
        **{
            f"published.{name}": vectors[f"vmfconst.{name}"]
            for name in ("dims", "kappa", "approx", "exact")
        },
    )
