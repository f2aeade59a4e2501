"""The model: a frozen backbone and a head; what people import."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from askance.features.backbone import Backbone, load_backbone
from askance.features.store import FeatureStore
from askance.features.views import Preprocessing, plain, upright_rgb
from askance.heads.checkpoint import SavedHead
from askance.heads.checkpoint import load as load_head
from askance.pipeline.artifacts import place


class Model(nn.Module):
    """`embedding, uncertainty = model(pictures)`; nothing in it is trainable."""

    def __init__(self, backbone: Backbone, saved: SavedHead) -> None:
        super().__init__()
        self.backbone, self.head, self.saved = backbone, saved.head, saved

    def forward(
        self, pictures: Sequence[Image.Image]
    ) -> tuple[Float[Tensor, "n d"], Float[Tensor, " n"]]:
        """Embed pictures of any size and mode and say how likely each embedding is to be wrong.

        Only the order of uncertainties means anything (larger is less certain): `percentile`
        gives them a scale.
        """
        size = self.backbone.preprocessing
        views = [np.asarray(plain(upright_rgb(picture), size)) for picture in pictures]
        pixels = torch.from_numpy(np.stack(views)).to(self.backbone.device)
        embedding = self.backbone(pixels)
        return embedding, self.head.uncertainty(embedding)

    def percentile(self, uncertainty: Float[Tensor, " n"]) -> Float[np.ndarray, " n"]:
        """Return the share of upstream images that are more certain, from 0 to 1."""
        return self.saved.percentile(uncertainty.double().cpu().numpy())


def load(path: Path | str, weights: str = "pretrained") -> Model:
    """Load a head that `train` wrote, on the backbone it was trained on.

    Args:
        path: `models/<head>-<seed>.safetensors`.
        weights: of the backbone, as in `extract.weights`.

    Raises:
        ValueError: not a head, or the backbone's weights are not those it was trained on.
        OSError: the head or the weights can't be had.
    """
    saved = load_head(Path(path))
    card = saved.backbone
    fields = card["preprocessing"]
    triples = {name: tuple(fields[name]) for name in ("mean", "std")}  # JSON made them lists
    preprocessing = Preprocessing(**fields | triples)
    found = load_backbone(card["backbone"], weights, preprocessing.size, "own", card["precision"])
    if found.weights_hash() != card["weights"]:
        raise ValueError(
            f"expected the weights {card['weights'][:12]} of {card['backbone']}, which {path} was"
            f" trained on, got {found.weights_hash()[:12]}: name their checkpoint by `weights`"
        )
    return Model(Backbone(found.network, preprocessing, card["precision"]), saved)


def open_store(path: Path | str) -> FeatureStore:
    """Open a finished feature store, at a path or URL: its arrays, with keys and labels."""
    return FeatureStore.open(place(str(path)))
