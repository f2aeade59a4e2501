"""infonce: two views of one image are to find each other among the others; its scalar is a norm."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from askance.heads.head import Batch, Need, Setup
from askance.heads.mapped import MappedHead

KAPPA = 28.0  # one over the temperature: URL's inv_temp at its submission

# Of (b, d) directions and kappa: the log-probability that each row finds its partner.
LogMatch = Callable[[Tensor, Tensor], Tensor]


def partners(batch: Float[Tensor, "b _"]) -> Int64[Tensor, " b"]:
    """Return each row's neighbour in the pairs (0, 1), (2, 3), ...: 1, 0, 3, 2, ...

    Raises:
        ValueError: an odd number of rows, or one pair, which has nothing to be told from.
    """
    rows = len(batch)
    if rows % 2 or rows < 4:
        raise ValueError(f"expected an even batch, whose rows form 2 pairs or more, got {rows}")
    return torch.arange(rows, device=batch.device) ^ 1


def log_match(direction: Float[Tensor, "b d"], kappa: Float[Tensor, ""]) -> Float[Tensor, " b"]:
    """Return log softmax_j (kappa <x_i, x_j>) at i's partner, over all rows j but i itself."""
    partner = partners(direction)
    similarity = (kappa * direction @ direction.T).fill_diagonal_(-torch.inf)
    return -cross_entropy(similarity, partner, reduction="none")


def published_log_match(
    direction: Float[Tensor, "b d"], kappa: Float[Tensor, ""]
) -> Float[Tensor, " b"]:
    """Return log (e^S_partner + 1) - log (sum over the negatives of e^S + 1), as URL's program.

    S is kappa <x_i, x_j>. The row itself is in both sums, as exp(0), and the partner is missing
    from the second: no log-probability, and above 0 where the match is good.
    """
    partner = partners(direction)
    similarity = (kappa * direction @ direction.T).fill_diagonal_(0)
    matched = similarity.gather(1, partner[:, None])
    other = similarity.scatter(1, partner[:, None], -torch.inf)
    return nn.functional.softplus(matched.squeeze(1), threshold=100) - other.logsumexp(dim=1)


def info_nce(
    direction: Float[Tensor, "b d"], kappa: Float[Tensor, ""], match: LogMatch = log_match
) -> Float[Tensor, ""]:
    """Return the mean over the rows of -log P(a row finds its partner among the other rows).

    Args:
        direction: unit vectors; the rows (0, 1), (2, 3), ... are pairs of views.
        kappa: one over the temperature.
        match: the log-probability, of each row.

    Raises:
        ValueError: an odd number of rows, or fewer than 4.
    """
    return -match(direction, kappa).mean()


class InfoNce(MappedHead):
    """Trained on InfoNCE; the uncertainty is 1 / |map(embedding)|, so a short one is uncertain.

    -mean_i log [ exp(kappa <x_i, x_i'>) / sum_{j != i} exp(kappa <x_i, x_j>) ], where x is the
    mapped embedding at unit length and i' the other view of i's image; kappa is learnt, from 28.

    The loss sees directions only, so nothing trains a length as such: a fresh head is `norm`
    (the map is the identity), and scaling the map is free. What is learnt is where lengths come
    from: the map stretches the directions that two views share and shrinks those in which they
    differ, so an embedding that lies in the latter becomes short.

    Source: van den Oord et al. 2018, arXiv 1807.03748, with the partner among the candidates;
    one over the norm as in URL, arXiv 2307.03810.
    """

    needs = frozenset({Need.PAIRS})

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.log_kappa = nn.Parameter(torch.tensor(math.log(KAPPA)))

    def forward(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, " n"]:
        """Return one over the mapped embedding's Euclidean norm."""
        return 1 / self.map(embedding).norm(dim=-1)

    def objective(self, batch: Batch) -> Float[Tensor, ""]:
        """Return InfoNCE of a batch whose neighbours are two views of one image."""
        return info_nce(self.direction(batch.embedding.detach()), self.log_kappa.exp())


class InfoNcePublished(InfoNce):
    """The program behind URL: kappa stays 28, and the sums are those of `published_log_match`."""

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.log_kappa.requires_grad_(False)

    def objective(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the published loss of a batch whose neighbours are two views of one image."""
        direction = self.direction(batch.embedding.detach())
        return info_nce(direction, self.log_kappa.exp(), published_log_match)
