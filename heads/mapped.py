"""Heads that learn a linear map of the frozen embedding, where the published method trains it all.

The map starts as the identity; neighbours are searched among what it maps to, so that the recall
of these heads is their own.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from askance.heads.head import Head, Setup
from askance.heads.predictor import Predictor

START = 1e-3  # URL's unc_start_value: of a fresh head's uncertainty, a concentration of 1,000
MOST = 1e5  # up to this concentration the vMF functions are accurate


class MappedHead(Head):
    """A head with a representation of its own, d wide like the embedding."""

    trained = True
    of_backbone = True
    mapped = True

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.map = nn.Linear(setup.dim, setup.dim, bias=False)
        nn.init.eye_(self.map.weight)

    def representation(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return the mapped embedding, not normalised."""
        return self.map(embedding)

    def direction(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return the mapped embedding at unit length."""
        return nn.functional.normalize(self.map(embedding), dim=-1)


class ConcentrationHead(MappedHead):
    """A mapped head whose uncertainty is one over a von Mises-Fisher concentration.

    The concentration is predicted from the frozen embedding by the network of `LossPredictor`,
    scaled so that a fresh head starts near 1,000 (the published program scales, too, but forgets
    the factor in its checkpoints).
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.layers = Predictor(setup)

    def forward(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return one over the concentration, above 0."""
        return START / math.log(2) * self.layers(embedding)

    def concentration(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the predicted concentration, from 0 to 100,000.

        At that limit nothing pulls any further: rows that are past it keep their order.
        """
        return torch.reciprocal(self(embedding)).clamp(max=MOST)
