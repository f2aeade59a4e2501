"""What every head is: a module from embeddings to one uncertainty each."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

AT_A_TIME = 65_536  # rows: bounds the memory of logits and hidden layers


@dataclass(frozen=True)
class Setup:
    """What a head may be built from; each takes what it needs.

    `dim` is the embedding's width; `width` and `depth` are the hidden layers of a trained head;
    `weight` (c, d) and `bias` (c,) are the upstream classifier.
    """

    dim: int
    width: int
    depth: int
    weight: Float[Tensor, "c d"]
    bias: Float[Tensor, " c"]


class Head(nn.Module):
    """Turns embeddings into uncertainties; larger is less certain.

    Only the order means a thing.

    A subclass is built from a `Setup`, defines `forward`, and, if `trained`, `objective`.
    """

    trained: ClassVar[bool] = False
    needs_classifier: ClassVar[bool] = False

    def forward(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the uncertainty of each embedding."""
        raise NotImplementedError

    def objective(self, embedding: Float[Tensor, "n d"], loss: Float[Tensor, " n"]) -> Tensor:
        """Return the scalar to minimise, given the upstream loss of each embedding."""
        raise NotImplementedError

    @torch.inference_mode()
    def uncertainty(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the uncertainty of any number of embeddings, some at a time."""
        return torch.cat([self(part.float()) for part in embedding.split(AT_A_TIME)])


class ClassifierHead(Head):
    """A head that reads the upstream classifier's logits; nothing is trained."""

    needs_classifier = True
    weight: Tensor
    bias: Tensor

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.register_buffer("weight", setup.weight)
        self.register_buffer("bias", setup.bias)

    def logits(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, "n c"]:
        """Return the classifier's logits."""
        return nn.functional.linear(embedding, self.weight, self.bias)
