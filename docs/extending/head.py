"""A head of your own: the loss that one image in ten like this exceeds.

python docs/extending/head.py train stores/upstream.zarr stores/upstream.probe.zarr \
    models/mine curves --heads upper --seeds 0
"""

import torch
from jaxtyping import Float
from torch import Tensor

from askance.heads.catalogue import HEADS
from askance.heads.head import Batch, Need
from askance.heads.predictor import LossPredictor

LEVEL = 0.9


class Upper(LossPredictor):
    """Trained on the pinball loss, whose minimum is the 90 % quantile of the loss.

    Source: Koenker and Bassett, Regression quantiles, Econometrica 46 (1978).
    """

    needs = frozenset({Need.LOSS})

    def objective(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the mean pinball loss: what lies above the prediction costs nine times more."""
        above = batch.loss - self(batch.embedding)
        return torch.maximum(LEVEL * above, (LEVEL - 1) * above).mean()


HEADS["upper"] = Upper

if __name__ == "__main__":
    from askance.__main__ import main

    main()
