"""What every head is: a module from embeddings to one uncertainty each.

A head says what it needs from a batch (`needs`), how it is trained (`objective`), what it answers
(`forward`), and, if it changes the embedding, to what (`representation`); its state is that of the
module. Adding one is a file, and a line in `askance.heads.catalogue`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar, NamedTuple

import torch
from jaxtyping import Float, Int64
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

    @property
    def sizes(self) -> dict[str, int]:
        """What a head of the same shape can be built from."""
        widths = {"dim": self.dim, "width": self.width, "depth": self.depth}
        return widths | {"classes": len(self.bias)}


class Batch(NamedTuple):
    """Rows of the upstream store, one view of an image each.

    `loss` is the upstream classifier's, in nats; `column` is the label's, among the classifier's.
    Neighbouring rows (0, 1), (2, 3), ... form pairs: of random rows, or, for a head that needs
    `Need.PAIRS`, of two views of one image.
    """

    embedding: Float[Tensor, "b d"]
    loss: Float[Tensor, " b"]
    column: Int64[Tensor, " b"]


class Need(StrEnum):
    """What an objective reads besides the embedding."""

    LOSS = "loss"
    LABEL = "label"
    PAIRS = "pairs"


class Head(nn.Module):
    """Turns embeddings into uncertainties; larger is less certain.

    Only the order means a thing. A subclass is built from a `Setup`, defines `forward`, and, if
    `trained`, `objective`. Both are the same for the same random state, and no row's uncertainty
    depends on the rows beside it.

    `of_backbone` says that the published method trains the backbone, too: what stands here is its
    frozen-backbone variant, whose numbers are not the published ones.
    `mapped` says that it has a `representation` of its own, so neighbours of its own.
    `twin` names the head whose training this one shares, if it differs in `forward` alone.
    `in_bfloat16` says that the matrix products of its objective may be rounded so.
    """

    trained: ClassVar[bool] = False
    needs: ClassVar[frozenset[Need]] = frozenset()
    needs_classifier: ClassVar[bool] = False
    of_backbone: ClassVar[bool] = False
    mapped: ClassVar[bool] = False
    twin: ClassVar[str] = ""
    in_bfloat16: ClassVar[bool] = False

    def forward(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the uncertainty of each embedding."""
        raise NotImplementedError

    def objective(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the scalar to minimise."""
        raise NotImplementedError

    def representation(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Return what neighbours are searched by: the embedding itself, unless a head maps it."""
        return embedding

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
