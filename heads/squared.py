"""squared: predict the loss itself (URL's Losspred)."""

from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import mse_loss

from askance.heads.head import Batch, Need
from askance.heads.predictor import LossPredictor


class Squared(LossPredictor):
    """Trained on mean (u - loss)^2.

    Source: Yoo and Kweon 2019 as in URL, arXiv 2307.03810, section 3, on a frozen backbone.
    """

    needs = frozenset({Need.LOSS})
    of_backbone = True

    def objective(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean squared error of the predicted loss."""
        return mse_loss(self(batch.embedding), batch.loss)
