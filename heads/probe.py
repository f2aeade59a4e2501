"""The probe: a regularised linear classifier on embeddings, for a backbone that has none.

Comes in: embeddings and labels. Goes out: weight and bias in the embedding's own units, and which
images each of the cross-fitted probes never saw.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Integer
from torch import Tensor
from torch.nn.functional import cross_entropy

from askance.pipeline.seeding import generator

TOLERANCE = 1e-5  # of the gradient's largest entry


@dataclass(frozen=True)
class Probe:
    """A linear classifier: logits = embedding @ weight.T + bias; column `j` is class `j`."""

    weight: Float32[Tensor, "c d"]
    bias: Float32[Tensor, " c"]


def fit_probe(
    embedding: Float[Tensor, "n d"],
    column: Int64[Tensor, " n"],
    classes: int,
    decay: float,
    iterations: int,
) -> Probe:
    """Fit multinomial logistic regression with an L2 penalty, by L-BFGS on all rows at once.

    Minimises mean cross-entropy + decay / 2 |W|^2, where W acts on standardised embeddings and
    the bias is free. A class without rows keeps a column (its probability becomes small).
    """
    x = embedding.float()
    mean, std = x.mean(0), x.std(0).clamp_min(1e-6)
    x = (x - mean) / std
    parameters = torch.zeros(classes, x.shape[1] + 1, requires_grad=True)
    lbfgs = torch.optim.LBFGS(
        [parameters],
        max_iter=iterations,
        history_size=10,
        tolerance_grad=TOLERANCE,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        lbfgs.zero_grad()
        weight, bias = parameters[:, :-1], parameters[:, -1]
        objective = cross_entropy(x @ weight.T + bias, column) + decay / 2 * weight.square().sum()
        objective.backward()
        return objective

    lbfgs.step(closure)
    weight, bias = parameters.detach()[:, :-1] / std, parameters.detach()[:, -1]
    return Probe(weight, bias - weight @ mean)


def folds_of(
    column: Integer[np.ndarray, " n"], folds: int, seed: int = 0
) -> Int64[np.ndarray, " n"]:
    """Deal the images of each class evenly over the folds, in a seeded random order.

    All views of an image share its row here, and so its fold.
    """
    random = generator("folds", seed)
    order = random.permutation(len(column))
    order = order[np.argsort(column[order], kind="stable")]  # by class, random within a class
    fold = np.empty(len(column), np.int64)
    fold[order] = np.arange(len(column)) % folds
    return fold


def cross_fit(
    embedding: Float[Tensor, "n v d"],
    column: Int64[Tensor, " n"],
    fold: Int64[Tensor, " n"],
    classes: int,
    decay: float,
    iterations: int,
) -> list[Probe]:
    """Fit one probe per fold, on all views of the images of the other folds."""
    views = embedding.shape[1]
    probes = []
    for number in range(int(fold.max()) + 1):
        seen = fold != number
        rows = embedding[seen].flatten(0, 1)
        probes.append(
            fit_probe(rows, column[seen].repeat_interleave(views), classes, decay, iterations)
        )
    return probes
