"""The loss predictor: a small MLP from a frozen embedding to a positive number."""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn

from askance.heads.head import Head, Setup

LEAKY_SLOPE = 0.01
FLOOR = 1e-6


class LossPredictor(Head):
    """Linear, LeakyReLU, ..., Linear(1), softplus, plus 1e-6; `depth` hidden layers of `width`.

    The embedding is detached: no gradient ever reaches a backbone (the stop-gradient of PVU).

    Source: arXiv 2402.16569, section 3: 512 wide, two hidden layers. A fresh head predicts about
    ln 2 everywhere.
    """

    trained = True

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        widths = [setup.dim, *[setup.width] * setup.depth]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.LeakyReLU(LEAKY_SLOPE)]
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1), nn.Softplus())

    def forward(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the predicted loss, at least 1e-6."""
        return FLOOR + self.layers(embedding.detach()).squeeze(-1)
