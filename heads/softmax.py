"""Heads that answer with several softmaxes per row: their mean, and how far they lie apart.

Logits come as (s, n, c): members, passes or samples first.
"""

import math

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import cross_entropy

from askance.heads.entropy import entropy
from askance.heads.head import Head, Need

SMOOTHING = 0.1  # of labels: what URL's classifiers were trained with
HELD = 2**24  # numbers: bounds the memory of all samples of some rows


def log_softmax(logits: Float[Tensor, "s n c"]) -> Float[Tensor, "s n c"]:
    """Return log-probabilities in float32 or float64: bfloat16 would round them to three digits."""
    return logits.log_softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))


def log_mean_softmax(logits: Float[Tensor, "s n c"]) -> Float[Tensor, "n c"]:
    """Return the logarithm of the mean of the s softmaxes: it sums to one, and serves as logits."""
    return log_softmax(logits).logsumexp(0) - math.log(len(logits))


def mixture_loss(
    logits: Float[Tensor, "s n c"], column: Int64[Tensor, " n"], smoothing: float = SMOOTHING
) -> Float[Tensor, ""]:
    """Return the cross-entropy of the mean softmax, in nats: of the mixture, not of its parts."""
    return cross_entropy(log_mean_softmax(logits), column, label_smoothing=smoothing)


def mixture_entropy(logits: Float[Tensor, "s n c"]) -> Float[Tensor, " n"]:
    """Return the entropy of the mean softmax in nats, from 0 to ln c."""
    return entropy(log_mean_softmax(logits))


def jensen_shannon(logits: Float[Tensor, "s n c"]) -> Float[Tensor, " n"]:
    """Return the Jensen-Shannon divergence of the s softmaxes in nats, from 0 to ln s.

    It is the entropy of the mean q minus the mean of the entropies of the p; here the mean of
    sum_c p log(p / q) - p + q, whose terms are never negative: the difference of two entropies
    would lose the small values of confident rows in float32.
    """
    log_mean = log_mean_softmax(logits)
    total = torch.zeros_like(log_mean[:, 0])
    for log_p in log_softmax(logits):
        ratio = log_p - log_mean
        total += (log_p.exp() * ratio - log_mean.exp() * ratio.expm1()).sum(-1)
    return (total / len(logits)).clamp_min(0)


class MixtureHead(Head):
    """A classifier on the frozen embedding that gives each row one or more softmaxes.

    A subclass defines `logits`, and sets `held`: how many numbers that takes per row. Its scalar
    is the entropy of the mean softmax, unless it says otherwise.
    """

    trained = True
    needs = frozenset({Need.LABEL})
    of_backbone = True
    held: int

    def logits(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, "s n c"]:
        """Return the logits of use, the same for a row whatever rows are beside it."""
        raise NotImplementedError

    def scalar(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the uncertainty of a few rows, in nats."""
        return mixture_entropy(self.logits(embedding))

    def forward(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return the scalar of any number of rows, of so many at a time that memory is bounded."""
        if torch.compiler.is_exporting():  # a graph has no loop over parts: its user cuts batches
            return self.scalar(embedding)
        parts = embedding.split(max(1, HELD // self.held))
        return torch.cat([self.scalar(part) for part in parts])
