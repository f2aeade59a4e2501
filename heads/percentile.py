"""Percentiles: the scale that users read, from the quantiles of the upstream rows."""

import torch
from jaxtyping import Float64, Real
from torch import Tensor


def percentile(
    quantiles: Float64[Tensor, " q"], uncertainty: Real[Tensor, " n"]
) -> Float64[Tensor, " n"]:
    """Return the share of upstream rows that are more certain, ties counted half; 0 to 1.

    `quantiles` rise from the smallest uncertainty to the largest, at equal shares; between two of
    them the share is interpolated. NaN where the uncertainty is NaN, or the quantiles are.
    """
    last, value = len(quantiles) - 1, uncertainty.to(quantiles.dtype)
    below = torch.searchsorted(quantiles, value)
    upto = torch.searchsorted(quantiles, value, right=True)
    low = (upto - 1).clamp(0, last - 1)
    start, stop = quantiles[low], quantiles[low + 1]
    between = low + ((value - start) / (stop - start)).clamp(0, 1)
    tied = (below.clamp(max=last) + upto.clamp(min=1) - 1) / 2
    return torch.where(upto > below, tied, between) / last
