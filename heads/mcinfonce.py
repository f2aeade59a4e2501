"""mcinfonce: InfoNCE in expectation over a von Mises-Fisher distribution per image."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from askance.heads import vmf
from askance.heads.head import Batch, Need, Setup
from askance.heads.infonce import KAPPA, LogMatch, log_match, published_log_match
from askance.heads.mapped import ConcentrationHead

SAMPLES = 16  # per row, as in URL


def mc_info_nce(
    samples: Float[Tensor, "k b d"], kappa: Float[Tensor, ""], match: LogMatch = log_match
) -> Float[Tensor, ""]:
    """Return the mean over the rows of -log mean_k P(a row's k-th sample finds its partner's).

    The similarities of one draw at a time are held, also for the gradient: they are computed
    again on the way back.

    Args:
        samples: k unit vectors of each row; the rows (0, 1), (2, 3), ... are pairs of views.
        kappa: one over the temperature.
        match: the log-probability, of each row of one draw.

    Raises:
        ValueError: an odd number of rows, or fewer than 4.
    """
    matches = [
        checkpoint(match, draw, kappa, use_reentrant=False, preserve_rng_state=False)
        for draw in samples
    ]
    return math.log(len(samples)) - torch.stack(matches).logsumexp(dim=0).mean()


class McInfoNce(ConcentrationHead):
    """Trained on MCInfoNCE: how far an image's samples scatter says how uncertain it is.

    -mean_i log mean_k [ exp(kappa <x_ki, x_ki'>) / sum_{j != i} exp(kappa <x_ki, x_kj>) ], where
    x_ki ~ vMF(map(e_i) / |map(e_i)|, 1 / u_i) and i' is the other view of i's image; 16 samples;
    kappa is learnt, from 28. Where all views find each other anyway, nothing teaches an
    order.

    Source: Kirchhof et al. 2023, arXiv 2302.02865, with the partner among the candidates and
    both views in the role of the query.
    """

    needs = frozenset({Need.PAIRS})
    sample = staticmethod(vmf.sample)
    match = staticmethod(log_match)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.log_kappa = nn.Parameter(torch.tensor(math.log(KAPPA)))

    def objective(self, batch: Batch) -> Float[Tensor, ""]:
        """Return MCInfoNCE of a batch whose neighbours are two views of one image."""
        embedding = batch.embedding.detach()
        samples = self.sample(self.direction(embedding), self.concentration(embedding), SAMPLES)
        return mc_info_nce(samples, self.log_kappa.exp(), self.match)


class McInfoNcePublished(McInfoNce):
    """The program behind URL: kappa stays 28, its sums, and its sampler, which is biased."""

    sample = staticmethod(vmf.published_sample)
    match = staticmethod(published_log_match)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.log_kappa.requires_grad_(False)
