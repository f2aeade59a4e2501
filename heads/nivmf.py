"""nivmf: classes are densities on the sphere with a concentration for every dimension."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize
from torch.utils.checkpoint import checkpoint

from askance.heads import vmf
from askance.heads.head import Batch, Need, Setup
from askance.heads.mapped import ConcentrationHead

CONCENTRATION = 28.0  # of a class in each dimension at the start: URL's inv_temp at its submission
SAMPLES = 16
PUBLISHED_DIM, PUBLISHED_LEAST = 10, 0.1
AT_ONCE = 1 << 24  # densities, of samples times rows times classes: bounds the memory


def nivmf_similarity(
    samples: Float[Tensor, "k n d"],
    class_direction: Float[Tensor, "c d"],
    class_concentration: Float[Tensor, "c d"],
    log_normaliser: Callable[[Tensor], Tensor],
) -> Float[Tensor, "n c"]:
    """Return the log of the mean, over a row's samples, of each class's density.

    The density is that of x on the sphere if Kx / |Kx| ~ vMF(K mu / |K mu|, |K mu|), where K is
    the diagonal matrix of the class's concentrations:

        log C(|K mu|) + <Kx, K mu> / |Kx| + log det K - d log |Kx|

    whose last two terms are the Jacobian of the map, so that it integrates to 1; equal
    concentrations make it vMF(mu, kappa). `log_normaliser` is log C. All directions are of unit
    length.

    Source: Kirchhof et al. 2022, arXiv 2207.03784 (non-isotropic von Mises-Fisher distributions);
    the Jacobian is exact here.
    """
    norm = (class_concentration * class_direction).norm(dim=-1)
    relative = class_concentration / norm[:, None]  # or else d log |Kx| is large, and coarse
    weight = class_concentration * relative * class_direction
    constant = log_normaliser(norm) + relative.log().sum(dim=-1)

    def log_density(x: Tensor) -> Tensor:
        squared = x.square() @ relative.square().T  # |Kx|^2 / |K mu|^2
        return constant + x @ weight.T * squared.rsqrt() - x.shape[-1] / 2 * squared.log()

    return log_mean_density(samples, log_density, len(norm))


def published_similarity(
    samples: Float[Tensor, "k n d"],
    class_direction: Float[Tensor, "c d"],
    class_concentration: Float[Tensor, "c d"],
    log_normaliser: Callable[[Tensor], Tensor],
) -> Float[Tensor, "n c"]:
    """Return what URL's program has for `nivmf_similarity`.

    The mean of exp( log C(|K mu|) + <x, K mu> + log det K - 2 log |K mu| ): x is not scaled, so
    each class is an isotropic vMF(K mu / |K mu|, |K mu|) with a factor that no density has.
    """
    concentration = class_concentration.clamp(min=PUBLISHED_LEAST)
    mean = concentration * class_direction
    norm = mean.norm(dim=-1)
    constant = log_normaliser(norm) + concentration.log().sum(dim=-1) - 2 * norm.log()
    return log_mean_density(samples, lambda x: constant + x @ mean.T, len(norm))


def log_mean_density(
    samples: Float[Tensor, "k n d"], log_density: Callable[[Tensor], Tensor], classes: int
) -> Float[Tensor, "n c"]:
    """Return log mean_k exp log_density(x_k), some rows at a time, here and in the gradient."""

    def of_rows(x: Tensor) -> Tensor:
        return log_density(x).logsumexp(dim=0) - math.log(len(x))

    rows = max(1, AT_ONCE // (len(samples) * classes))
    parts = [
        checkpoint(of_rows, part, use_reentrant=False, preserve_rng_state=False)
        for part in samples.split(rows, dim=1)
    ]
    return torch.cat(parts)


class Nivmf(ConcentrationHead):
    """Trained to classify: the softmax, over the classes, of the density around the image.

    mean_i [ -s(i, y_i) + log sum_c exp s(i, c) ], s = `nivmf_similarity` of 16 samples of
    vMF(mu_i, 1 / u_i), where mu_i is the mapped embedding at unit length, and of the class's
    direction w_c / |w_c| and concentrations K_c.

    An image between classes is best told by samples far apart, whose densities average out. The
    w_c are learnt, from the rows of the upstream classifier at unit length, and so are the K_c,
    as logarithms, each from 28 and not, as in `Elk`, from d: the sharper the classes, the less 16
    samples say of the mean. Their noise costs uncertain images most, so that a long training
    lowers their u, in the end below that of the others; with 256 samples it did not.

    Source: Kirchhof et al. 2022, arXiv 2207.03784, as in URL, arXiv 2307.03810.
    """

    needs = frozenset({Need.LABEL})
    sample = staticmethod(vmf.sample)
    similarity = staticmethod(nivmf_similarity)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.weight = nn.Parameter(normalize(setup.weight, dim=-1))
        start = torch.full_like(setup.weight, math.log(CONCENTRATION))
        self.log_concentration = nn.Parameter(start)

    def log_normaliser(self, concentration: Float[Tensor, " c"]) -> Float[Tensor, " c"]:
        """Return the logarithm of the normaliser of a class's density."""
        return vmf.log_normaliser(concentration, self.weight.shape[1])

    def objective(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the cross-entropy of the similarities, in nats."""
        embedding = batch.embedding.detach()
        similarity = self.similarity(
            self.sample(self.direction(embedding), self.concentration(embedding), SAMPLES),
            normalize(self.weight, dim=-1),
            self.log_concentration.exp(),
            self.log_normaliser,
        )
        return cross_entropy(similarity, batch.column)


class NivmfPublished(Nivmf):
    """The program behind URL's numbers: `published_similarity` and a biased sampler.

    log C is the table's of dimension 10 at every dimension; the concentrations are 28, constant;
    the w_c start from the rows of the upstream classifier as they are.
    """

    sample = staticmethod(vmf.published_sample)
    similarity = staticmethod(published_similarity)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.weight = nn.Parameter(setup.weight.clone())
        self.log_concentration.requires_grad_(False)

    def log_normaliser(self, concentration: Float[Tensor, " c"]) -> Float[Tensor, " c"]:
        """Return the published approximation, of dimension 10."""
        return vmf.published_log_normaliser(concentration, PUBLISHED_DIM)
