"""Forecasts: an extraction's whole cost, of a set that is there or of the paper's schedule."""

import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from askance.features.cost import (
    Actual,
    Reading,
    StoreCost,
    actual,
    cost,
    logits_bytes,
    reading,
    schema,
)
from askance.features.embed import Embedder
from askance.features.index import read_index
from askance.features.layout import Layout
from askance.features.recipe import Recipe
from askance.features.speed import Measured, Memory, measure, memory
from askance.features.store import attributes
from askance.features.views import View
from askance.features.writer import StoreWriter
from askance.pipeline.artifacts import Place

# Pictures decoded and augmented a second and core. benchmarks/augment.py has 760 with one view of
# a photograph of 500 x 375, and 1,380 with four, on a core of an AMD EPYC: this leaves some room.
DECODED = 600

# ImageNet-21k-W as arXiv 2402.16569 trains on it: 460 pseudo-epochs of 781 batches of 256.
ROWS, VIEWS, CLASSES, READ = 13_150_000, 7, 21_843, 460 * 781 * 256
WIDTHS = {"ViT-Ti": 192, "ViT-S": 384, "ViT-B": 768, "ViT-L": 1024}

# Pictures a second of these backbones at 224 pixels, by card, and whose figures they are: of the
# network alone, on pictures that are on the card already.
TIMM = "timm, results/benchmark-infer-amp-nchw"
CARDS = {
    "RTX 3090": ((10_232, 4_585, 1_571, 487), f"{TIMM}-pt240-cu124-rtx3090.csv"),
    "RTX 4090": ((17_666, 7_693, 2_787, 913), f"{TIMM}-pt240-cu124-rtx4090.csv"),
    "RTX 5090": ((26_140, 10_973, 3_916, 1_108), f"{TIMM}-pt291-cu130-5090.csv"),
    "H100 NVL": ((None, 17_060, 7_310, 2_492), "github.com/calebrob6/throughput-bench, bfloat16"),
}


@dataclass(frozen=True)
class Forecast:
    """What an extraction will take, and what is there of it already.

    `rate` is in pictures a second, of all workers; `hours` are those of the rows that are left.
    `free` bytes are None at an object store, and where no place was named. `logits` are bytes by
    what is kept of them, for a classifier of `classes`.
    """

    data: str
    place: str
    views: int
    reading: Reading
    store: StoreCost
    classes: int
    logits: dict[str, int]
    memory: Memory
    measured: Measured | None
    rate: float
    hours: float
    free: int | None
    actual: Actual | None
    warnings: tuple[str, ...]


def forecast(
    data: Path,
    store: Place | None,
    recipe: Recipe,
    rate: float,
    seconds: float,
    scheduler: str,
    workers: int,
) -> Forecast:
    """Foretell an extraction; measure for `seconds` where `rate` (pictures a second) is 0.

    Raises:
        ValueError, OSError: as extract would, before its first image.
    """
    index = read_index(data)
    embedder = Embedder.load(recipe)
    layout, read = embedder.layout(index), reading(index, recipe.block)
    whole = cost(layout, len(index), (data / "index.parquet").stat().st_size)
    measured = None if rate else measure(embedder, index, seconds)
    if measured:
        rate = measured.rate * _machines(scheduler, workers, embedder.backbone.device)
    there, free, warnings = None, _free(store), list(whole.warnings)
    if store is not None and (found := attributes(store)):
        if found.get("fingerprint") == StoreWriter(store, layout, index).fingerprint:
            there = actual(store)
        else:
            warnings.append(f"what is at {store} has other parameters: extract sets it aside")
    need = whole.bytes - (there.bytes if there else 0)
    if free is not None and free < need:
        warnings.append(f"{need / 1e9:,.1f} GB are needed at {store}, {free / 1e9:,.1f} are free")
    own = embedder.backbone.classifier()
    classes = 0 if own is None else len(own.bias)
    return Forecast(
        data=str(data),
        place=str(store or ""),
        views=len(recipe.views),
        reading=read,
        store=whole,
        classes=classes,
        logits=logits_bytes(recipe, classes, len(index)) if classes else {},
        memory=memory(embedder, layout, index, read, scheduler),
        measured=measured,
        rate=rate,
        hours=(there.left if there else len(index)) * len(recipe.views) / rate / 3600,
        free=free,
        actual=there,
        warnings=tuple(warnings),
    )


def _machines(scheduler: str, workers: int, device: torch.device) -> int:
    """Return how often the rate of one process is had: local workers share processor and GPUs."""
    if scheduler == "none":
        return 1
    here = torch.cuda.device_count() if device.type == "cuda" else 1
    return min(workers, here) if scheduler == "local" else workers


def _free(store: Place | None) -> int | None:
    if not isinstance(store, Path):
        return None
    there = next(folder for folder in store.absolute().parents if folder.exists())
    return shutil.disk_usage(there).free


@dataclass(frozen=True)
class Scheduled:
    """What the paper's schedule takes with one backbone; hours, and cores that decode, by card."""

    backbone: str
    store: StoreCost
    logits: dict[str, int]
    hours: dict[str, float]
    cores: dict[str, int]


def imagenet21k(rate: float) -> list[Scheduled]:
    """Foretell the paper's schedule on ImageNet-21k-W by backbone; neither data nor weights needed.

    Every image is embedded in seven views, as many pictures as the paper's training reads. The
    stores hold losses, but no logits, and are counted without the index. `rate`: pictures a second
    of one more machine; 0 for none.
    """
    found = []
    for number, (name, width) in enumerate(WIDTHS.items()):
        recipe = Recipe((View.AUGMENT,) * VIEWS, name, classifier="own", block=8192)
        bias = np.zeros(CLASSES, np.float32)
        weight = np.broadcast_to(bias[:, None], (CLASSES, width))  # takes no memory
        whole = {"classifier/weight": weight, "classifier/bias": bias}
        layout = Layout(schema(recipe, width, CLASSES), recipe.block, {}, whole=whole)
        rates = {card: speeds[number] for card, (speeds, _) in CARDS.items()} | {"--rate": rate}
        known = {card: speed for card, speed in rates.items() if speed}
        found.append(
            Scheduled(
                backbone=name,
                store=cost(layout, ROWS),
                logits=logits_bytes(recipe, CLASSES, ROWS),
                hours={card: ROWS * VIEWS / speed / 3600 for card, speed in known.items()},
                cores={card: math.ceil(speed / DECODED) for card, speed in known.items()},
            )
        )
    return found
