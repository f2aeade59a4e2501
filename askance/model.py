"""The model: a frozen backbone and a head; what people import."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard, ModelHubMixin
from jaxtyping import Float, Float32, Float64, Real, UInt8
from PIL import Image
from torch import Tensor, nn

from askance import hub, places
from askance.card import readme
from askance.features.backbone import Backbone, load_backbone
from askance.features.views import Precision
from askance.heads.checkpoint import SavedHead, save, tensors_hash
from askance.heads.percentile import percentile
from askance.pipeline.provenance import versions
from askance.pixels import Picture, Preprocess

Answer = tuple[Float32[Tensor, "n d"], Float[Tensor, " n"]]

AT_A_TIME = 32  # pictures: bounds the memory of their pixels


class Model(nn.Module, ModelHubMixin):
    """`embedding, uncertainty = model(pictures)`.

    Frozen and in evaluation mode. The uncertainty reads a detached embedding, whatever is
    trainable: no gradient of it ever reaches the backbone (the stop-gradient of PVU, arXiv
    2402.16569).

    `preprocess` turns a picture into pixels. `classes` names the columns of `classifier`, where
    they are known. `about` is what the card says: metrics, data, licence.
    """

    _hub_mixin_config: dict[str, Any] = {}  # noqa: RUF012 - the card is our own
    quantiles: Tensor

    def __init__(
        self, backbone: Backbone, saved: SavedHead, about: dict[str, Any] | None = None
    ) -> None:
        super().__init__()
        if backbone.width != saved.sizes["dim"]:
            raise ValueError(
                f"expected a head for embeddings of {backbone.width} columns, as"
                f" {saved.backbone.get('backbone')} gives, got {saved.name} for"
                f" {saved.sizes['dim']}: name its own backbone, or train a head on this one"
            )
        self.backbone, self.head, self.saved = backbone, saved.head, saved
        self._as_loaded = tensors_hash(saved.head.state_dict())
        self.probe = None if saved.classifier is None else _linear(*saved.classifier)
        self.about = about or {}
        self.classes: list[str] = self.about.get("classes", [])
        self.preprocess = Preprocess(backbone.preprocessing)
        self.register_buffer("quantiles", torch.from_numpy(saved.quantiles))
        self.requires_grad_(False).eval()

    def forward(self, pictures: Tensor | Picture | Sequence[object]) -> Answer:
        """Embed pictures and say how likely each embedding is to be wrong.

        Only the order of uncertainties means anything (larger is less certain): `percentile`
        gives them a scale.

        Args:
            pictures: a PIL image or path, a list of them, of any size and mode; or a batch of
                pixels, (n, 3, s, s) of the backbone's size, as `preprocess` makes them: uint8 from
                0 to 255, or floating from 0 to 1, not normalised.

        Returns:
            One row per picture, also of a single one: embeddings, float32, not normalised; and
            uncertainties.

        Raises:
            ValueError: pixels of another size or range (a compiled model does not look), not a
                picture, no picture at all.
            TypeError: neither pixels nor pictures.
            OSError: a file can't be read.
        """
        if isinstance(pictures, Tensor):
            self._check(pictures)
            return self._answer(pictures)
        if isinstance(pictures, (Image.Image, Path, str)):
            pictures = [pictures]
        answers = [self._answer(part) for part in self._batches(pictures)]
        if not answers:
            raise ValueError("expected pictures, got an empty list")
        embedding, uncertainty = (torch.cat(parts) for parts in zip(*answers, strict=True))
        return embedding, uncertainty

    def percentile(self, uncertainty: Float[Tensor, " n"]) -> Float64[Tensor, " n"]:
        """Return the share of upstream images that are more certain, from 0 to 1.

        NaN where the uncertainty is, and for a head whose upstream images are not known.
        """
        return percentile(self.quantiles, uncertainty)

    def train_backbone(self) -> "Model":
        """Make everything trainable, and go into training mode.

        A task's loss then trains the backbone through the embedding, and one of the uncertainty
        trains the head alone: it still receives the embedding detached. The percentiles, and the
        head, are those of the backbone as it was: train the head on as the backbone changes.
        """
        return self.requires_grad_(True).train()

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    @property
    def classifier(self) -> nn.Linear | None:
        """The linear map from embedding to logits that the upstream losses came from.

        That kept with the head; else the backbone's own, over all of its classes; None if neither
        is there.
        """
        return self.probe or self.backbone.linear

    def _answer(self, pixels: Real[Tensor, "n 3 s s"]) -> Answer:
        embedding = self.backbone(pixels)
        kind = embedding.device.type
        if not torch.is_autocast_enabled(kind):
            return embedding, self.head(embedding.detach())
        with torch.autocast(kind, enabled=False):  # in a short type uncertainties would tie
            return embedding, self.head(embedding.detach())

    def _batches(self, pictures: Sequence[object]) -> Iterator[UInt8[Tensor, "_ 3 s s"]]:
        for start in range(0, len(pictures), AT_A_TIME):
            part = [self.preprocess(picture) for picture in pictures[start : start + AT_A_TIME]]
            yield torch.stack(part).to(self.device)

    def _check(self, pixels: Tensor) -> None:
        side = self.preprocess.preprocessing.size
        if pixels.ndim != 4 or pixels.shape[1:] != (3, side, side):
            raise ValueError(
                f"expected pixels of shape (n, 3, {side}, {side}), got {tuple(pixels.shape)}:"
                " model.preprocess makes them"
            )
        if pixels.dtype != torch.uint8 and not pixels.is_floating_point():
            raise ValueError(f"expected uint8 or floating pixels, got {pixels.dtype}")
        if pixels.dtype == torch.uint8 or torch.compiler.is_compiling() or not len(pixels):
            return
        low, high = (float(bound) for bound in pixels.detach().aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"expected floating pixels from 0 to 1, got {low:.3g} to {high:.3g}: don't"
                " normalise them, the model does"
            )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Model":
        """Move all, and convert the backbone, as torch has it: `to` and `half` come through here.

        The rest stays as it is: it costs nothing, and in a short type uncertainties would tie.
        """
        self.backbone._apply(fn)

        def moved(tensor: Tensor) -> Tensor:
            return tensor.to(fn(tensor.new_empty(0)).device)

        for child in self.children():
            if child is not self.backbone:
                child._apply(moved, recurse)
        self.quantiles = moved(self.quantiles)
        return self

    def card(self) -> dict[str, Any]:
        """Return all that is told of the model beside its tensors.

        The backbone with its weights' hash and preprocessing, the head and its training, the
        quantiles behind the percentiles, versions; and `about`.
        """
        return places.described(self.saved) | {"versions": versions(), "about": self.about}

    def generate_model_card(self, name: str = "owner/name") -> ModelCard:
        """Return the README of a release called `name`, written from `card`."""
        return ModelCard(readme(self.card(), name))

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:  # noqa: ANN401
        """Write a release: the tensors of the head, the card and a README.

        The backbone stays where it comes from. `options` are the mixin's.

        Raises:
            ValueError: a head or backbone that was trained since it was loaded, whose percentiles
                and metrics are of what it was; a folder with other files, which are left alone.
        """
        self._check_unchanged()
        with hub.placed(Path(save_directory)) as made:
            # By the mixin's own means a card would go before there is a better one.
            return super().save_pretrained(made, **options)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # noqa: ANN401
        """Put a release on the hub, as `save_pretrained` writes it; `options` are the mixin's."""
        return super().push_to_hub(repo_id, model_card_kwargs={"name": repo_id}, **options)

    def _check_unchanged(self) -> None:
        if self.backbone.weights_hash() != self.saved.backbone["weights"]:
            raise ValueError(
                f"expected the weights of {self.saved.backbone['backbone']} that the head was"
                " trained on, got others (trained since?): train a head on them, and release that"
            )
        if tensors_hash(self.head.state_dict()) != self._as_loaded:
            raise ValueError(
                "expected the head as it was loaded, got one trained since, whose percentiles and"
                " metrics are not known: make a SavedHead of it, with its own quantiles"
            )

    def _save_pretrained(self, save_directory: Path) -> None:
        save(save_directory / places.TENSORS, self.saved)
        places.write_card(save_directory, self.card())

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        source: str | Path,
        *,
        weights: str = "",
        **options: Any,  # noqa: ANN401
    ) -> "Model":
        """Load a released model: a folder, or the name of one on the hub.

        The mixin's own would take arguments from the card, which may be a stranger's.

        Args:
            source: the folder or name.
            weights: of the backbone, as `load` has them.
            options: of `huggingface_hub.snapshot_download`, as the mixin has them: `revision`,
                `token`, `cache_dir`, `force_download`, `local_files_only`.
        """
        folder = Path(source)
        if not folder.is_dir():
            folder = hub.fetch(str(source), **options)
        return _assembled(places.find(folder), weights, str(source))


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    layer = nn.Linear(*weight.shape[::-1])
    layer.load_state_dict({"weight": weight, "bias": bias})
    return layer


def load(
    source: Path | str, weights: str = "", *, head: str = "", seed: int | None = None
) -> Model:
    """Load a model: a head, on the backbone it was trained on.

    Args:
        source: the folder of a run, a head's file (`models/<head>-<seed>.safetensors`), the folder
            of a released model, or the name of one on the hub (`owner/name`).
        weights: of the backbone, as in `extract.weights`; if not given, those of the run, or the
            pretrained ones.
        head: of a run; its first one if not given.
        seed: of a run's head; its first one if not given.

    Raises:
        ValueError: not a model, a damaged one, or the backbone's weights are not those it was
            trained on.
        OSError: the head or the weights can't be had.
    """
    if not Path(source).exists() and hub.NAME.fullmatch(str(source)):
        source = hub.fetch(str(source))
    return _assembled(places.find(Path(source), head, seed), weights, str(source))


def _assembled(found: places.Found, weights: str, source: str) -> Model:
    saved = found.saved
    card, preprocessing = saved.backbone, places.preprocessing(saved, source)
    precision: Precision = card["precision"]
    loaded = load_backbone(
        card["backbone"], weights or found.weights, preprocessing.size, "own", precision
    )
    if loaded.weights_hash() != card["weights"]:
        raise ValueError(
            f"expected the weights {card['weights'][:12]} of {card['backbone']}, which the head in"
            f" {source} was trained on, got {loaded.weights_hash()[:12]}"
            f" ({weights or found.weights}): name their checkpoint by `weights`"
        )
    return Model(Backbone(loaded.network, preprocessing, precision), saved, found.about)
