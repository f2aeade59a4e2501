"""ranking: predict the order of the losses (PVU)."""

import torch
from jaxtyping import Float
from torch import Tensor

from askance.heads.head import Batch, Need
from askance.heads.predictor import LossPredictor

MARGIN = 0.1


def ranking_loss(
    uncertainty: Float[Tensor, " n"], loss: Float[Tensor, " n"], margin: float = MARGIN
) -> Float[Tensor, ""]:
    """Return the mean hinge over the pairs of neighbours (0, 1), (2, 3), ... of a batch.

    Per pair: max(0, margin - s (u_first - u_second)), with s = +1 where the first loss is larger
    and -1 otherwise; equal losses count as "the second is larger", as in the original. A constant
    prediction costs exactly the margin.

    Source: arXiv 2402.16569, equation 3; pairs and margin as its program has them.

    Raises:
        ValueError: an odd number of rows.
    """
    if len(uncertainty) % 2:
        raise ValueError(f"expected an even batch, whose rows form pairs, got {len(uncertainty)}")
    first, second = uncertainty.view(-1, 2).unbind(1)
    loss_first, loss_second = loss.view(-1, 2).unbind(1)
    sign = torch.where(loss_first > loss_second, 1.0, -1.0).to(uncertainty.dtype)
    zero = uncertainty.new_zeros(())
    # maximum, not clamp: at a hinge of exactly 0 the original's gradient is one half.
    return torch.maximum(zero, margin - sign * (first - second)).mean()


class Ranking(LossPredictor):
    """The paper's head: trained to order pairs of images by their loss."""

    needs = frozenset({Need.LOSS})

    def objective(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the ranking loss of a batch whose neighbours form the pairs."""
        return ranking_loss(self(batch.embedding), batch.loss)
