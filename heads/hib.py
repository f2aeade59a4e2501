"""hib: hedged instance embeddings, trained to say which rows are views of one image."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.utils.checkpoint import checkpoint

from askance.heads import vmf
from askance.heads.head import Batch, Need, Setup
from askance.heads.infonce import partners
from askance.heads.mapped import ConcentrationHead

SAMPLES = 16  # per row, as in URL
SCALE, OFFSET = 28.0, -5.36  # URL's inv_temp at its submission, and its hib_add_const for ViTs
PUBLISHED_FLOOR = 1e-5
ROWS = 128  # of (samples, rows, batch) at a time: 17 MB at a batch of 2,048


def log_mean(log: Float[Tensor, "k ..."]) -> Float[Tensor, "..."]:
    """Return the log of the mean over the samples."""
    return log.logsumexp(dim=0) - math.log(len(log))


def log_mismatch(logit: Float[Tensor, "k r b"]) -> Float[Tensor, "r b"]:
    """Return log(1 - p), finite for any logit, where p is the mean sigmoid over the samples."""
    return log_mean(logsigmoid(-logit))


def published_match(logit: Float[Tensor, "k r b"]) -> Float[Tensor, "r b"]:
    """Return p + 1e-5, which may exceed 1, where p is the mean sigmoid over the samples."""
    return logit.sigmoid().mean(dim=0) + PUBLISHED_FLOOR


def of_all_pairs(
    what: Callable[[Tensor], Tensor],
    samples: Float[Tensor, "k b d"],
    scale: Float[Tensor, ""],
    offset: Float[Tensor, ""],
) -> Float[Tensor, "b b"]:
    """Return `what` of the logits scale <x_ki, x_kj> + offset, for all rows i and j.

    The logits of some rows at a time are held, also for the gradient: they are computed again on
    the way back.
    """

    def of_rows(anchors: Float[Tensor, "k r d"]) -> Float[Tensor, "r b"]:
        return what(scale * anchors @ samples.mT + offset)

    return torch.cat(
        [
            checkpoint(of_rows, anchors, use_reentrant=False, preserve_rng_state=False)
            for anchors in samples.split(ROWS, dim=1)
        ]
    )


def row_mean(value: Float[Tensor, "b b"], chosen: Bool[Tensor, "b b"]) -> Float[Tensor, " b"]:
    """Return the mean of each row's chosen entries."""
    return value.masked_fill(~chosen, 0).sum(dim=1) / chosen.sum(dim=1)


def identity(rows: Float[Tensor, "b _"]) -> Bool[Tensor, "b b"]:
    """Return which entries of a square are on its diagonal."""
    return torch.eye(len(rows), dtype=torch.bool, device=rows.device)


def hib(
    samples: Float[Tensor, "k b d"], scale: Float[Tensor, ""], offset: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """Return -mean_i [ log p_ii' + mean_j log(1 - p_ij) ] over all j but i and its partner i'.

    p_ij = mean_k sigmoid(scale <x_ki, x_kj> + offset) is the probability of a match. Samples of
    one index are independent draws of both rows, so 16 of them estimate p without bias, as in
    URL's program, at a sixteenth of the price of all 256 combinations, which the paper takes.

    Args:
        samples: k unit vectors of each row; the rows (0, 1), (2, 3), ... are pairs of views.
        scale: of the cosine, above 0.
        offset: added to the scaled cosine.

    Raises:
        ValueError: an odd number of rows, or fewer than 4.
    """
    partner, itself = partners(samples[0]), identity(samples[0])
    cosine = (samples * samples[:, partner]).sum(dim=-1)
    match = log_mean(logsigmoid(scale * cosine + offset))
    mismatch = of_all_pairs(log_mismatch, samples, scale, offset)
    return -(match + row_mean(mismatch, ~(itself | itself[partner]))).mean()


def published_hib(match: Float[Tensor, "b b"], positive: Bool[Tensor, "b b"]) -> Float[Tensor, ""]:
    """Return -mean_i [ mean_j log p_ij over i's positives - mean_j log p_ij over its negatives ].

    This is what URL's numbers were made with: it lowers log p of the negatives, down to the floor
    of 1e-5, instead of raising log(1 - p). A row is no positive of itself.
    """
    log, negative = match.log(), ~(positive | identity(match))
    return (row_mean(log, negative) - row_mean(log, positive)).mean()


class Hib(ConcentrationHead):
    """Trained to tell views of one image from others by samples: scatter hedges the answer.

    `hib`, where x_ki ~ vMF(map(e_i) / |map(e_i)|, 1 / u_i); 16 samples; scale and offset are
    learnt, the scale as its logarithm, from 28 and -5.36.

    Scatter lowers every cosine, so it pays for images whose views do not look alike; but where
    all views find each other it also costs the clearest images least, and the order may turn.

    Source: Oh et al. 2019, arXiv 1810.00319 (soft contrastive loss), on the sphere and without
    its prior as in URL, arXiv 2307.03810: cosines instead of distances, no KL term.
    """

    needs = frozenset({Need.PAIRS})
    sample = staticmethod(vmf.sample)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))
        self.offset = nn.Parameter(torch.tensor(OFFSET))

    def draw(self, batch: Batch) -> Float[Tensor, "k b d"]:
        """Return unit vectors around each row's direction."""
        embedding = batch.embedding.detach()
        return self.sample(self.direction(embedding), self.concentration(embedding), SAMPLES)

    def objective(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the soft contrastive loss of a batch whose neighbours are two views of one."""
        return hib(self.draw(batch), self.log_scale.exp(), self.offset)


class HibPublished(Hib):
    """The program behind URL's numbers: another loss, a fixed scale and offset, a biased sampler.

    On noisy views of random directions it makes the noisy ones the more certain. The program was
    later corrected to `hib` but for p + 1e-5, whose log(1 - p) may be undefined.
    """

    sample = staticmethod(vmf.published_sample)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.log_scale.requires_grad_(False)
        self.offset.requires_grad_(False)

    def objective(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the published loss of a batch whose neighbours are two views of one image."""
        samples = self.draw(batch)
        match = of_all_pairs(published_match, samples, self.log_scale.exp(), self.offset)
        return published_hib(match, identity(match)[partners(match)])
