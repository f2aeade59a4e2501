"""entropy: of the upstream classifier's softmax; nothing is trained."""

import torch
from jaxtyping import Float
from torch import Tensor

from askance.heads.head import ClassifierHead


def entropy(logits: Float[Tensor, "n c"]) -> Float[Tensor, " n"]:
    """Return the entropy of softmax(logits) in nats, from 0 to ln c; 0 log 0 is 0."""
    return torch.special.entr(logits.softmax(-1)).sum(-1)


class Entropy(ClassifierHead):
    """The class entropy of the upstream classifier: URL's scalar of cross-entropy training."""

    of_backbone = True

    def forward(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the entropy in nats."""
        return entropy(self.logits(embedding))
