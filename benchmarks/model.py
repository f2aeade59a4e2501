"""What the uncertainty costs beside the backbone, in CPU-seconds of one thread.

`model(pixels)` beside `model.backbone(pixels)`, and beside the bare network on pixels that are
normalised already: ViT-S with the head of the run in the current folder, at 112 px with the run's
weights and at 224 px with random ones, which cost the same. The contenders take turns batch by
batch, and are compared round by round; what is too little to be seen so is timed alone.
"""

import time
from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

import askance
from askance.features.backbone import Backbone, timm
from askance.features.views import Precision, Preprocessing
from askance.pipeline.provenance import machine

BATCH, REPEATS = 32, 300
ROUNDS = {112: 21, 224: 7}
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
LARGE = Preprocessing(224, 0.9, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))

Ways = dict[str, Callable[[], object]]


def models(precision: Precision) -> dict[int, askance.Model]:
    """Return the run's model, and its head on a ViT-S/16 at 224 px, by the side of their pixels."""
    run = askance.load(".")
    networks = {
        run.backbone.preprocessing: run.backbone.network,
        LARGE: timm.create_model("vit_small_patch16_224"),
    }
    return {
        preprocessing.size: askance.Model(Backbone(network, preprocessing, precision), run.saved)
        for preprocessing, network in networks.items()
    }


def bare(model: askance.Model, images: Tensor) -> Tensor:
    """Return the embedding as timm alone computes it."""
    backbone = model.backbone
    rounding = torch.autocast("cpu", torch.bfloat16)
    with rounding if backbone.precision == "bfloat16" else nullcontext():
        features = backbone.network.forward_features(images)
        return backbone.network.forward_head(features, pre_logits=True)


def wholes(model: askance.Model, pixels: Tensor) -> Ways:
    """Return ways to treat one batch."""
    images = model.backbone.normalised(pixels)
    return {
        "network": lambda: bare(model, images),
        "backbone": lambda: model.backbone(pixels),
        "model": lambda: model(pixels),
    }


def parts(model: askance.Model, pixels: Tensor) -> Ways:
    """Return what a model does beside the network, on one batch."""
    floating, (embedding, uncertainty) = pixels / 255, model(pixels)
    return {
        "normalisation": lambda: model.backbone.normalised(pixels),
        "head": lambda: model.head(embedding),
        "percentile": lambda: model.percentile(uncertainty),
        "range of floating pixels": lambda: model._check(floating),
    }


def spent(ways: Ways, rounds: int) -> dict[str, np.ndarray]:
    """Return the CPU-seconds of each way by round, after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):
        for name, way in ways.items():
            before = time.process_time()
            way()
            seconds[name].append(time.process_time() - before)
    return {name: np.array(taken[1:]) for name, taken in seconds.items()}


def compare(side: int, model: askance.Model) -> None:
    """Print what a batch costs: medians over rounds, and the middle half of the rounds."""
    levels = np.random.default_rng(0).integers(0, 256, (BATCH, 3, side, side), np.uint8)
    pixels = torch.from_numpy(levels)
    whole = spent(wholes(model, pixels), ROUNDS[side])
    network = np.median(whole["network"])
    print(f"{side} px, {model.backbone.precision}: the network takes {network:.3f} CPU-s a batch")
    for way, other in (("backbone", "network"), ("model", "backbone"), ("model", "network")):
        low, middle, high = np.quantile(whole[way] / whole[other] - 1, (0.25, 0.5, 0.75))
        print(f"  {way} over {other}: {middle:+.2%} ({low:+.2%} to {high:+.2%})", flush=True)
    for part, taken in spent(parts(model, pixels), REPEATS).items():
        alone = np.median(taken)
        print(f"  {part} alone: {1e6 * alone:.0f} us, {alone / network:.3%}", flush=True)


def main() -> None:
    """Print the costs at both sizes, in both precisions."""
    torch.set_num_threads(1)
    print(f"{machine()}; torch {torch.__version__}, 1 thread, batch {BATCH}")
    for precision in PRECISIONS:
        for side, model in models(precision).items():
            compare(side, model)


if __name__ == "__main__":
    main()
