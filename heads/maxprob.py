"""maxprob: one minus the upstream classifier's largest probability; nothing is trained."""

from jaxtyping import Float
from torch import Tensor, nn

from askance.heads.head import Head, Setup


class MaxProb(Head):
    """1 - max softmax: the usual baseline of selective classification, from 0 to 1 - 1/c.

    Source: Hendrycks and Gimpel 2017, arXiv 1610.02136.
    """

    needs_classifier = True
    weight: Tensor
    bias: Tensor

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.register_buffer("weight", setup.weight)
        self.register_buffer("bias", setup.bias)

    def forward(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return one minus the largest probability."""
        logits = nn.functional.linear(embedding, self.weight, self.bias)
        return 1 - logits.softmax(-1).amax(-1)
