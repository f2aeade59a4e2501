"""A sample of the upstream images, with which every head is looked at.

Comes in: the upstream store. Goes out: which images are never trained on, how well a head foretells
their wrong neighbours, and the images whose uncertainties give percentiles.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from askance.eval.holdout import hits
from askance.eval.ranks import auroc
from askance.features.store import FeatureStore
from askance.heads.head import Head
from askance.pipeline.seeding import hashed

SCALE, GALLERY, QUERIES = 100_000, 20_000, 5_000  # images at most: of percentiles, of validation


@dataclass(frozen=True)
class Sample:
    """Upstream images in the order of their keys' hashes.

    `scale` are those whose uncertainties give percentiles; the first of them, as many as there are
    labels, are the gallery of validation; the first `queries` of these search it, and are never
    trained on (`held_out`, of all rows). Plain views, where the store has some: what users score
    are pictures.
    """

    scale: Float[Tensor, "k d"]
    label: Integer[Tensor, " g"]
    queries: int
    held_out: Bool[np.ndarray, " n"]

    @classmethod
    def draw(cls, features: FeatureStore, holdout: float, device: torch.device) -> "Sample":
        """Take the first images; `holdout` is the share of all to validate on."""
        order = hashed(features.keys)
        queries = min(math.ceil(holdout * len(order)), QUERIES)
        held_out = np.zeros(len(order), bool)
        held_out[order[:queries]] = True
        view = "plain" if "plain" in features.views else features.views[0]
        scale = torch.from_numpy(features.some(view, order[:SCALE])).to(device)
        label = torch.from_numpy(features.labels[order[:GALLERY]]).to(device)
        return cls(scale, label, queries, held_out)

    def r_auroc(self, head: Head) -> float:
        """Return how well a head foretells wrong neighbours of held-out images; NaN if undefined.

        The neighbours are those of the head's own representation.
        """
        if not self.queries:
            return math.nan
        uncertainty = head.uncertainty(self.scale[: self.queries]).double().cpu().numpy()
        if not head.mapped:
            return auroc(uncertainty, self.missed)
        with torch.inference_mode():
            mapped = head.representation(self.scale[: len(self.label)])
        return auroc(uncertainty, ~hits(mapped, self.label, self.queries))

    @cached_property
    def missed(self) -> Bool[np.ndarray, " q"]:
        """Whether the nearest neighbour by the frozen embedding has another label, per query."""
        return ~hits(self.scale[: len(self.label)], self.label, self.queries)
