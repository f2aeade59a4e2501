"""maxprob: one minus the upstream classifier's largest probability; nothing is trained."""

from jaxtyping import Float
from torch import Tensor

from askance.heads.head import ClassifierHead


class MaxProb(ClassifierHead):
    """1 - max softmax: the usual baseline of selective classification, from 0 to 1 - 1/c.

    Source: Hendrycks and Gimpel 2017, arXiv 1610.02136.
    """

    def forward(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return one minus the largest probability."""
        return 1 - self.logits(embedding).softmax(-1).amax(-1)
