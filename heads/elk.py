"""elk: images and classes are densities on the sphere, alike as far as they overlap."""

import math
from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from askance.heads import vmf
from askance.heads.head import Batch, Need, Setup
from askance.heads.mapped import ConcentrationHead

PUBLISHED_SCALE = 28.0  # URL's inv_temp at its submission


def elk_similarity(
    direction: Float[Tensor, "n d"],
    concentration: Float[Tensor, " n"],
    class_direction: Float[Tensor, "c d"],
    class_concentration: Float[Tensor, " c"],
    log_normaliser: Callable[[Tensor], Tensor],
) -> Float[Tensor, "n c"]:
    """Return log of the integral of each image's density times each class's, over the sphere.

    log C(kappa_i) + log C(kappa_c) - log C(|kappa_i mu_i + kappa_c mu_c|), with log C the given
    logarithm of the normaliser of a von Mises-Fisher density. All directions are of unit length.

    Source: Kirchhof et al. 2022, arXiv 2207.03784 (the expected likelihood kernel).
    """
    # The three logarithms nearly cancel, and so do their gradients to kappa_i: not in float32.
    image, class_ = concentration.double()[:, None], class_concentration.double()
    opposite = 1 + (direction @ class_direction.T).double()  # above 0, up to rounding
    squared = (image - class_).square() + 2 * image * class_ * opposite
    length = squared.clamp(min=1e-12).sqrt()  # whose gradient is finite
    similarity = log_normaliser(image) + log_normaliser(class_) - log_normaliser(length)
    return similarity.to(direction.dtype)


class Elk(ConcentrationHead):
    """Trained to classify: the softmax, over the classes, of the similarity to the image.

    mean_i [ -s(i, y_i) + log sum_c exp s(i, c) ], s = `elk_similarity` of vMF(mu_i, 1 / u_i), where
    mu_i is the mapped embedding at unit length, and vMF(w_c / |w_c|, kappa_c).

    An image between classes is best told by a broad density, whose similarities are flat. The
    w_c are learnt, from the rows of the upstream classifier at unit length, and so are the
    kappa_c, as logarithms, each from d: what the classifier's scale is does not matter. At d the
    mean cosine inside a class is 0.62 in any dimension. From far below, all images alike make up
    for classes that are too broad, and u vanishes.

    Source: Kirchhof et al. 2022, arXiv 2207.03784, as in URL, arXiv 2307.03810.
    """

    needs = frozenset({Need.LABEL})
    log_normaliser = staticmethod(vmf.log_normaliser)

    def __init__(self, setup: Setup) -> None:
        super().__init__(setup)
        self.weight = nn.Parameter(normalize(setup.weight, dim=-1))
        start = torch.full((len(setup.weight),), math.log(setup.dim))
        self.log_concentration = nn.Parameter(start)

    def class_concentration(self) -> Float[Tensor, " c"]:
        """Return the concentration of each class."""
        return self.log_concentration.exp()

    def objective(self, batch: Batch) -> Float[Tensor, ""]:
        """Return the cross-entropy of the similarities, in nats."""
        embedding = batch.embedding.detach()
        similarity = elk_similarity(
            self.direction(embedding),
            self.concentration(embedding),
            normalize(self.weight, dim=-1),
            self.class_concentration(),
            partial(self.log_normaliser, dim=embedding.shape[1]),
        )
        return cross_entropy(similarity, batch.column)


class ElkPublished(Elk):
    """The program behind URL's numbers: a table for log C, and kappa_c = 28 max(|w_c|, 1).

    The 28 is constant; the w_c start from the rows of the upstream classifier as they are.

    Raises:
        ValueError: the table has no entry for the dimension of the embedding.
    """

    log_normaliser = staticmethod(vmf.published_log_normaliser)

    def __init__(self, setup: Setup) -> None:
        vmf.published_log_normaliser(torch.ones(()), setup.dim)  # raises now, not at a first step
        super().__init__(setup)
        self.weight = nn.Parameter(setup.weight.clone())
        del self.log_concentration

    def class_concentration(self) -> Float[Tensor, " c"]:
        """Return the concentration of each class."""
        return PUBLISHED_SCALE * self.weight.norm(dim=-1).clamp(min=1)
