"""The small network from a frozen embedding to a positive number, and the heads that are one."""

from itertools import pairwise

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import softplus

from askance.heads.head import Head, Setup

LEAKY_SLOPE = 0.01
FLOOR = 1e-6


class Predictor(nn.Sequential):
    """Linear, LeakyReLU, ..., Linear(1), softplus, plus 1e-6; `depth` hidden layers of `width`.

    The embedding is detached: no gradient ever reaches a backbone (the stop-gradient of PVU).

    Source: arXiv 2402.16569, section 3: 512 wide, two hidden layers. A fresh one predicts about
    ln 2 everywhere.
    """

    def __init__(self, setup: Setup) -> None:
        widths = [setup.dim, *[setup.width] * setup.depth]
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(widths):
            layers += [nn.Linear(fan_in, fan_out), nn.LeakyReLU(LEAKY_SLOPE, inplace=True)]
        super().__init__(*layers, nn.Linear(widths[-1], 1))

    def forward(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return a number above 1e-6 for each embedding."""
        raw = super().forward(embedding.detach()).squeeze(-1)
        return FLOOR + softplus(raw.to(self[0].weight.dtype))  # bfloat16 would make ties


class LossPredictor(Head):
    """A head whose uncertainty is the predicted loss; the subclass says how it is trained."""

    trained = True
    in_bfloat16 = True

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.layers = Predictor(setup)

    def forward(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the predicted loss, at least 1e-6."""
        return self.layers(embedding)
