"""entropy: of the upstream classifier's softmax; nothing is trained."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from askance.heads.head import Head, Setup


def entropy(logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """Return the entropy of softmax(logits) in nats, from 0 to ln c; 0 log 0 is 0."""
    return torch.special.entr(logits.softmax(-1)).sum(-1)


class Entropy(Head):
    """The class entropy of the upstream classifier: URL's scalar of cross-entropy training."""

    needs_classifier = True
    weight: Tensor
    bias: Tensor

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.register_buffer("weight", setup.weight)
        self.register_buffer("bias", setup.bias)

    def forward(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the entropy in nats."""
        return entropy(nn.functional.linear(embedding, self.weight, self.bias))
