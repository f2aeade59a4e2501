"""A backbone of your own: any network, once timm knows it by a name.

python docs/extending/backbone.py extract data/upstream stores/mine.zarr --views plain \
    --backbone little_convnet --weights little.safetensors
"""

from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from askance.features.backbone import timm  # mends torchvision before timm imports it

default_cfgs = timm.models.generate_default_cfgs(
    {
        "little_convnet": {
            "input_size": (3, 64, 64),
            "crop_pct": 0.9,
            "interpolation": "bilinear",
            "mean": (0.5, 0.5, 0.5),
            "std": (0.5, 0.5, 0.5),
            "classifier": "classifier",
        }
    }
)


class LittleConvnet(nn.Module):
    """Four convolutions that halve the picture, and the mean over what is left of it.

    What askance asks of a network: `forward_features`, `forward_head(..., pre_logits=True)`,
    `get_classifier`, `head_hidden_size`; timm's weights loading asks for `num_classes`.
    """

    def __init__(self, num_classes: int = 1000, in_chans: int = 3) -> None:
        super().__init__()
        self.num_classes, self.head_hidden_size = num_classes, 64
        layers: list[nn.Module] = []
        for i, o in pairwise([in_chans, 8, 16, 32, 64]):
            layers += [nn.Conv2d(i, o, 3, stride=2, padding=1), nn.GELU()]
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(64, num_classes) if num_classes else nn.Identity()

    def forward_features(self, images: Tensor) -> Tensor:
        """Return the last map, (b, d, h, w)."""
        return self.layers(images)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the embedding (b, d), or the logits (b, c)."""
        embedding = features.mean((2, 3))
        return embedding if pre_logits else self.classifier(embedding)

    def get_classifier(self) -> nn.Module:
        """Return the linear map from embedding to logits."""
        return self.classifier

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        return self.forward_head(self.forward_features(images))


@timm.models.register_model
def little_convnet(pretrained: bool = False, **options: Any) -> LittleConvnet:  # noqa: ANN401
    """Build the network as timm builds its own, which fills it with a checkpoint, strictly."""
    return timm.models.build_model_with_cfg(LittleConvnet, "little_convnet", pretrained, **options)


if __name__ == "__main__":
    from askance.__main__ import main

    main()
