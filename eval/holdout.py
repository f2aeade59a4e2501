"""Held-out images of the upstream set: which checkpoint of a head is best is decided on them."""

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor
from torch.nn.functional import normalize

AT_A_TIME = 1024  # queries


def hits(
    embedding: Float[Tensor, "g d"], label: Integer[Tensor, " g"], queries: int
) -> Bool[np.ndarray, " q"]:
    """Tell for each of the first rows whether its nearest other row has the same label.

    Cosine in float32, ties to the first: good enough to choose a checkpoint by, and a fraction of
    the cost of `askance.eval.retrieval`, which decides what is reported.
    """
    unit = normalize(embedding.float(), dim=-1)
    found = []
    for start in range(0, queries, AT_A_TIME):
        own = torch.arange(start, min(start + AT_A_TIME, queries), device=unit.device)
        similarity = unit[own] @ unit.T
        similarity[own - start, own] = -torch.inf
        found.append(label[similarity.argmax(1)] == label[own])
    return torch.cat(found).cpu().numpy()
