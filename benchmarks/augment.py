"""Photographs decoded and augmented per second of processor time, beside the usual pipeline.

The stand-in decodes each view anew, as live epochs do, and transforms it by timm and torchvision on
Pillow; ours decodes once for all views. The contenders take turns and each reports the median of
its rounds, in the processor time of all threads; read the ratios.
"""

import io
import statistics
import time
from collections.abc import Callable
from itertools import count

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps
from sklearn.datasets import load_sample_images

from askance.features.views import Preprocessing, View, decode, render
from askance.pipeline.provenance import machine
from askance.pipeline.vision import import_torchvision

import_torchvision()  # before timm, which imports it
from timm.data.transforms import RandomResizedCropAndInterpolation, ToNumpy  # noqa: E402
from torchvision.transforms import ColorJitter, Compose, RandomHorizontalFlip  # noqa: E402

ROUNDS, REPEATS, VIEWS = 9, 25, 4
WIDTH, HEIGHT, QUALITY, SIZE = 500, 375, 92, 224
PREPROCESSING = Preprocessing(SIZE, 0.875, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def photographs() -> list[bytes]:
    """Return scikit-learn's two photographs as JPEGs of a common size."""
    encoded = []
    for pixels in load_sample_images().images:
        sink = io.BytesIO()
        picture = ImageOps.fit(Image.fromarray(pixels), (WIDTH, HEIGHT), Image.Resampling.LANCZOS)
        picture.save(sink, "jpeg", quality=QUALITY)
        encoded.append(sink.getvalue())
    return encoded


def contenders() -> dict[str, Callable[[bytes], object]]:
    """Return ways to treat one photograph."""
    transform = Compose(
        [
            RandomResizedCropAndInterpolation(SIZE, (0.08, 1), (3 / 4, 4 / 3), "random"),
            RandomHorizontalFlip(),
            ColorJitter(0.4, 0.4, 0.4),
            ToNumpy(),
        ]
    )
    keys = map(str, count())  # fresh draws each time, as the stand-in's are

    def stand_in(content: bytes) -> np.ndarray:
        return transform(Image.open(io.BytesIO(content)).convert("RGB"))

    def ours(content: bytes, views: int) -> np.ndarray:
        return render(decode(content), (View.AUGMENT,) * views, PREPROCESSING, 0, next(keys))

    return {
        "decode alone": decode,
        "stand-in, 1 view": stand_in,
        "ours, 1 view": lambda content: ours(content, 1),
        f"stand-in, {VIEWS} views": lambda content: [stand_in(content) for _ in range(VIEWS)],
        f"ours, {VIEWS} views": lambda content: ours(content, VIEWS),
    }


def rates(ways: dict[str, Callable[[bytes], object]]) -> dict[str, float]:
    """Return photographs per second of processor time, the median over alternating rounds."""
    contents = photographs() * REPEATS
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.process_time()
            for content in contents:
                way(content)
            seconds[name].append(time.process_time() - start)
    return {name: len(contents) / statistics.median(taken) for name, taken in seconds.items()}


def main() -> None:
    """Print rates, and the ratios of ours to the stand-in."""
    print(
        f"{machine()}; Pillow {PIL.__version__}, torch {torch.__version__};"
        f" {WIDTH} x {HEIGHT} JPEG, quality {QUALITY}, to {SIZE} px"
    )
    found = rates(contenders())
    for way, rate in found.items():
        print(f"{way:20} {rate:7.0f} img/CPU-s")
    for views in ("1 view", f"{VIEWS} views"):
        print(f"{views:20} x{found[f'ours, {views}'] / found[f'stand-in, {views}']:.2f}")
