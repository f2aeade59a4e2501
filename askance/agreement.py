"""Whether a file that was made of a model answers as the model does.

Comes in: what runs the file, the model, pictures. Goes out: how far their answers are apart.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from askance.eval.ranks import spearman
from askance.model import Model

Precision = Literal["float32", "float16", "int8"]
Pixels = UInt8[Tensor, "n 3 s s"]
Run = Callable[[Pixels], Sequence[np.ndarray]]  # to embedding, uncertainty and percentile

BATCHES = (1, 3, 32)  # sizes that are tried
TOLERANCE = 1e-4  # of float32
ORDER = {"float16": 0.99, "int8": 0.9}  # least rank correlation of uncertainties with float32


class Difference(NamedTuple):
    """How far a file's answers are from the model's in float32.

    The largest difference of an `embedding`, as a share of its largest entry; of an `uncertainty`,
    as a share of the largest one where that is above 1; of a `percentile`; and of a percentile
    from that of the file's own uncertainty (`scale`): where many upstream images tie, percentiles
    jump at the smallest rounding. `order` is the rank correlation of the uncertainties.
    """

    embedding: float
    uncertainty: float
    percentile: float
    scale: float
    order: float

    def __str__(self) -> str:
        return (
            f"embedding {self.embedding:.1e}, uncertainty {self.uncertainty:.1e}, percentile"
            f" {self.percentile:.1e} at most; rank correlation of uncertainties {self.order:.4f}"
        )

    def check(self, precision: Precision) -> None:
        """Raise a ValueError unless a file of this precision will do; NaN never does."""
        if precision == "float32":
            largest = (self.embedding, self.uncertainty, self.scale)
            fits = all(share <= TOLERANCE for share in largest)
            expected = f"within {TOLERANCE} of the model's"
        else:
            fits = self.scale <= TOLERANCE and self.order >= ORDER[precision]
            expected = f"whose order is the model's to a rank correlation of {ORDER[precision]}"
        if not fits:
            raise ValueError(
                f"expected answers {expected}, got differences of: {self}. No file is written: take"
                " another precision, head, or version of torch and onnxruntime"
            )


def difference(run: Run, reference: Run, model: Model, pixels: Pixels) -> Difference:
    """Compare what two programs answer, of which `reference` is the model in float32.

    All pictures are asked for in batches of 32, the first ones in batches of 1 and 3, too.
    """
    got, expected, rows = _answers(run, pixels), _answers(reference, pixels), len(pixels)
    embedding, uncertainty, percentile = map(_largest, got, expected)
    own = model.percentile(torch.from_numpy(got[1])).float().numpy()
    finite = np.isfinite(got[0]).all() and np.isfinite(got[1]).all()
    return Difference(
        embedding / float(np.abs(expected[0]).max()),
        uncertainty / max(1.0, float(np.abs(expected[1]).max())),
        percentile,
        _largest(got[2], own),
        spearman(got[1][:rows], expected[1][:rows]) if finite else math.nan,
    )


def _answers(run: Run, pixels: Pixels) -> list[np.ndarray]:
    *small, large = BATCHES
    batches = (*pixels.split(large), *(pixels[:size] for size in small))
    return [np.concatenate(parts) for parts in zip(*map(run, batches), strict=True)]


def _largest(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest difference; 0 where both are NaN: percentiles of a head without any."""
    both_nan = np.isnan(one) & np.isnan(other)
    return float(np.where(both_nan, 0, np.abs(one - other)).max())
