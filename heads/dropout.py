"""dropout: a linear classifier behind dropout, asked through ten fixed masks (MC dropout)."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import dropout, linear

from askance.heads.head import Batch, Setup
from askance.heads.softmax import MixtureHead, jensen_shannon, mixture_loss


class Dropout(MixtureHead):
    """The entropy of the mean softmax over ten masks of the embedding.

    H(q) with q = mean_s softmax(W (m_s * f) + b), where m_s is 0 with probability `RATE` and
    1 / (1 - RATE) otherwise: the same ten masks for every row, so that rows differ by what they
    are and not by their draws. Starts from the upstream classifier.

    Source: Gal and Ghahramani 2016, arXiv 1506.02142, on the frozen embedding alone; rate and
    passes from URL, arXiv 2307.03810 (0.133 for its ViT, 0.087 for its ResNet-50). Its program
    drops inside the backbone, and at use, by mistake, nothing in a ViT.
    """

    in_bfloat16 = True
    RATE = 0.133
    PASSES = 10
    mask: Tensor

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.held = self.PASSES * max(setup.dim, len(setup.bias))
        self.weight = nn.Parameter(setup.weight.clone())
        self.bias = nn.Parameter(setup.bias.clone())
        fixed = torch.Generator().manual_seed(0)
        kept = torch.rand(self.PASSES, 1, setup.dim, generator=fixed) >= self.RATE
        self.register_buffer("mask", kept / (1 - self.RATE))

    def logits(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, "s n c"]:
        """Return the logits behind each mask."""
        return linear(self.mask * embedding, self.weight, self.bias)

    def objective(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the cross-entropy behind one random mask per row, with smoothed labels."""
        dropped = dropout(batch.embedding.detach(), self.RATE)
        return mixture_loss(linear(dropped, self.weight, self.bias)[None], batch.column)


class DropoutJsd(Dropout):
    """The Jensen-Shannon divergence of the passes: H(q) - mean_s H(p_s), from 0 to ln 10.

    The scalar of URL's best ResNet-50; that of its best ViT is the entropy.
    """

    twin = "dropout"

    def scalar(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the divergence of a few rows, in nats."""
        return jensen_shannon(self.logits(embedding))
