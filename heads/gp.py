"""gp: a Gaussian process, by random features, as the classifier (the last layer of SNGP)."""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from askance.heads.head import Batch, Setup
from askance.heads.softmax import MixtureHead, mixture_loss

DISCOUNT = 0.999
RIDGE = 1e-6


def orthogonal_frequencies(count: int, dim: int) -> Float[Tensor, "m d"]:
    """Draw frequencies that are standard normal each, and at right angles in blocks of `dim`.

    Source: Yu et al. 2016, arXiv 1610.09072.
    """
    blocks = [torch.linalg.qr(torch.randn(dim, dim))[0] for _ in range(-(-count // dim))]
    return torch.cat(blocks)[:count] * torch.randn(count, dim).norm(dim=1, keepdim=True)


def precision_after(
    precision: Float[Tensor, "m m"], features: Float[Tensor, "n m"]
) -> Float[Tensor, "m m"]:
    """Return the moving average of the mean outer product of features, with one batch more."""
    return DISCOUNT * precision + (1 - DISCOUNT) / len(features) * features.mT @ features


def posterior_variance(
    precision: Float[Tensor, "m m"], features: Float[Tensor, "n m"]
) -> Float[Tensor, " n"]:
    """Return ridge phi^T (P + ridge I)^-1 phi: from near 0 where data was, to |phi|^2.

    In float64, as the ridge is 1e-6 of the largest eigenvalues.
    """
    ridge = RIDGE * torch.eye(len(precision), dtype=torch.float64, device=precision.device)
    root = torch.linalg.cholesky(precision.double() + ridge)
    whitened = torch.linalg.solve_triangular(root, features.double().mT, upper=False)
    return (RIDGE * whitened.square().sum(0)).to(features.dtype)


class Gp(MixtureHead):
    """The entropy of the softmax of a Gaussian process, whose variance grows away from the data.

    H(softmax(z / sqrt(1 + a^2 v))), the mean-field approximation, with logits z = a phi^T B of
    variance a^2 v, v = r phi^T (P + r I)^-1 phi, on 1,024 random features phi = sqrt(2 / m)
    cos(A LayerNorm(f) + t). B, which has no bias, and the LayerNorm are learnt. P is the moving
    average of phi phi^T over the batches of training (discount 0.999, r = 1e-6: the evidence of
    (1 - 0.999^steps) million rows); no last pass over the data is needed.

    The rows of A are orthogonal, as long as normal vectors with sd 1 / sqrt(d), and t is uniform:
    phi^T phi' approximates exp(-|x - x'|^2 / 2d), whose length scale is the norm of what LayerNorm
    returns. (URL's program means to use an sd of 0.05: the same at 400 dimensions.) a = sqrt(m / 2)
    is the prior sd of a logit. With a = 1, Adam at the rate of the other heads leaves B too small
    (measured, 384 dimensions, 456 classes, 600 steps: R-AUROC of known classes 0.72 against 0.81
    for the entropy of z), and v, below 0.01, does nothing.

    Source: Liu et al. 2020, arXiv 2006.10108, with its Gaussian likelihood; the mean field of Lu et
    al. 2020, arXiv 2006.07584, with factor 1; sizes as in URL, arXiv 2307.03810.
    """

    FEATURES = 1024
    START = 0.01  # sd of B
    frequency: Tensor
    phase: Tensor
    precision: Tensor

    def __init__(self, setup: Setup) -> None:
        super().__init__()
        self.held = max(self.FEATURES, len(setup.bias))
        self.normalise = nn.LayerNorm(setup.dim)
        self.output = nn.Parameter(self.START * torch.randn(len(setup.bias), self.FEATURES))
        frequency = orthogonal_frequencies(self.FEATURES, setup.dim) / math.sqrt(setup.dim)
        self.register_buffer("frequency", frequency)
        self.register_buffer("phase", 2 * math.pi * torch.rand(self.FEATURES))
        self.register_buffer("precision", torch.zeros(self.FEATURES, self.FEATURES))

    def features(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, "n m"]:
        """Return a phi, which is the cosines themselves."""
        return linear(self.normalise(embedding.detach()), self.frequency, self.phase).cos()

    def variance(self, features: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        """Return the variance of the logits, a^2 v, from 0 to about m / 2."""
        amplitude = math.sqrt(self.FEATURES / 2)
        return amplitude**2 * posterior_variance(self.precision, features / amplitude)

    def observe(self, features: Float[Tensor, "n m"]) -> None:
        """Count the rows of a training batch as evidence."""
        phi = features.detach() / math.sqrt(self.FEATURES / 2)
        self.precision.copy_(precision_after(self.precision, phi))

    def logits(self, embedding: Float[Tensor, "n d"]) -> Float[Tensor, "1 n c"]:
        """Return the mean-field logits."""
        features = self.features(embedding)
        spread = (1 + self.variance(features)).sqrt()
        return (linear(features, self.output) / spread[:, None])[None]

    def objective(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the cross-entropy, with smoothed labels; and take the batch for evidence."""
        features = self.features(batch.embedding)
        self.observe(features)
        return mixture_loss(linear(features, self.output)[None], batch.column)


class GpPublished(Gp):
    """The program behind URL: no evidence is ever counted, and the variance does nothing.

    The covariance stays a random matrix (Xavier's), and r = 1e-6 of it changes logits by 1e-5 of
    themselves. The frequencies are of sd 1, a length scale so short that any two embeddings are
    unlike: what it learns of one row says nothing of the next.
    """

    covariance: Tensor

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.frequency *= math.sqrt(setup.dim)
        self.register_buffer("covariance", nn.init.xavier_normal_(torch.empty_like(self.precision)))

    def observe(self, features: Float[Tensor, "n m"]) -> None:
        """Forget the rows."""

    def variance(self, features: Float[Tensor, "n m"]) -> Float[Tensor, " n"]:
        """Return r phi^T C phi, of either sign, with the features' scale left out."""
        return RIDGE * ((features @ self.covariance) * features).sum(-1)
