"""norm: one over the embedding's length; nothing is trained."""

from jaxtyping import Float
from torch import Tensor

from askance.heads.head import Head, Setup


class Norm(Head):
    """1 / |embedding|: short embeddings are the uncertain ones; infinite for a zero embedding.

    Source: URL, arXiv 2307.03810, the scalar of InfoNCE.
    """

    def __init__(self, setup: Setup) -> None:
        super().__init__()

    def forward(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return one over the Euclidean norm."""
        return 1 / embedding.norm(dim=-1)
