"""What embedding takes of this machine: its memory, foretold, and its time, measured."""

import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, repeat
from typing import Any

import numpy as np
import torch

from askance.features.backbone import Backbone
from askance.features.blocks import Block, Task, task
from askance.features.cluster import PER_WORKER
from askance.features.cost import Reading
from askance.features.embed import AHEAD, Embedder
from askance.features.engine import IN_FLIGHT, Engine
from askance.features.index import Index
from askance.features.layout import Layout
from askance.features.reader import READERS, images
from askance.features.views import decode, render
from askance.pipeline.provenance import machine

# Factors of peaks of real runs: weights while they are loaded, the widest layer (a block keeps its
# neighbours), logits while they are scored, the index while it is hashed.
LOADING, LAYERS, SCORING, HASHING = 3, 2.5, 6.25, 5.4
LIBRARIES = 64 << 20  # what they take at the first image


@dataclass(frozen=True)
class Memory:
    """Peak bytes by what takes them, without the interpreter and its libraries (about 0.4 GB)."""

    worker: dict[str, int]
    client: dict[str, int]  # where there are workers; else all is in `worker`


def memory(
    embedder: Embedder, layout: Layout, index: Index, read: Reading, scheduler: str
) -> Memory:
    """Say how much memory a worker and the client take: this machine's, not a GPU's; within half.

    Not counted: the one original that each thread decodes, 4 bytes a pixel.
    """
    recipe, backbone = embedder.recipe, embedder.backbone
    views, rows = len(recipe.views), min(recipe.block, len(index))
    on_gpu = backbone.device.type == "cuda"
    batch, values = recipe.images * views, 3 * backbone.preprocessing.size**2
    ready = (AHEAD + 2 + (IN_FLIGHT + 1) * on_gpu) * batch  # decoded; in a list, joined; pinned
    network = 0 if on_gpu else batch * (4 * values + LAYERS * _widest(backbone))
    columns = 0 if embedder.classifier is None else len(embedder.classifier.bias)
    weights = sum(tensor.nbytes for tensor in backbone.network.state_dict().values())
    both = {"weights": LOADING * weights, "libraries": LIBRARIES}
    worker = both | {
        "reads": min((READERS + 1) * read.largest_read, read.read_bytes),
        "pictures": min(ready, 2 * views * len(index)) * values,
        "network, then scores": int(max(network, SCORING * 4 * rows * views * columns)),
        "block": 2 * 4 * rows * views * backbone.width,  # its batches, and joined
    }
    block = sum(4 * rows * math.prod(array.row) for array in layout.arrays.values())
    # Two blocks wait for the disk; a block is copied to be stored, and again to be hashed.
    writing = {"blocks to write": 4 * block, "index": int(HASHING * index.table.nbytes)}
    if scheduler == "none":
        return Memory(worker | writing, {})
    return Memory(worker | {"blocks to hand over": PER_WORKER * block}, both | writing)


def _widest(backbone: Backbone) -> int:
    """Return the bytes of one picture before and behind the network's widest layer, in float32."""
    widest = 0

    def look(_: torch.nn.Module, before: tuple[Any, ...], behind: object) -> None:
        nonlocal widest
        tensors = [x for x in (*before, behind) if isinstance(x, torch.Tensor)]
        widest = max(widest, sum(tensor.nbytes for tensor in tensors))

    layers = [layer for layer in backbone.network.modules() if not list(layer.children())]
    hooks = [layer.register_forward_hook(look) for layer in layers]
    side = backbone.preprocessing.size
    with torch.inference_mode():
        backbone(torch.zeros(1, 3, side, side, dtype=torch.uint8, device=backbone.device))
    for hook in hooks:
        hook.remove()
    return max(widest, 4 * backbone.width)


@dataclass(frozen=True)
class Measured:
    """Pictures per second on this machine, and how they were had.

    `rate` is that of reading, decoding and embedding together; `decode` that of one thread,
    decoding and rendering alone; `forward` that of the network alone.
    """

    rate: float
    decode: float
    forward: float
    pictures: int
    conditions: str


def measure(embedder: Embedder, index: Index, seconds: float) -> Measured:
    """Embed images of a set, in random order of batches, for about `seconds`.

    Raises:
        ValueError: none of a batch's images can be read.
    """
    recipe = embedder.recipe
    views, per = len(recipe.views), recipe.images
    starts = np.random.default_rng(0).permutation(np.arange(0, len(index), per)).tolist()
    parts = [Block(place, at, min(at + per, len(index))) for place, at in enumerate(starts)]
    encoded = _encoded(task(index, parts[0]))
    pixels = np.concatenate([_rendered(embedder, *item) for item in encoded])
    tasks = (task(index, part) for part in cycle(parts))  # a small set again and again
    whole = (views * (len(x.rows) - len(x.refused)) for x in embedder.embed(tasks))
    rate, pictures = _rate(whole, seconds * 0.6)
    whole.close()
    decode_rate, _ = _rate((len(_rendered(embedder, *x)) for x in cycle(encoded)), seconds * 0.2)
    engine = Engine(embedder.backbone, per * views)
    forward, _ = _rate((len(x) for x in engine.embed(repeat(pixels))), seconds * 0.2)
    device = embedder.backbone.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    conditions = (
        f"{name}, {recipe.precision}, batch {recipe.batch}, {recipe.threads} decoding threads;"
        f" {machine()}, torch on {torch.get_num_threads()}, load {os.getloadavg()[0]:.1f} of others"
        " and ours; file cache as it was"
    )
    return Measured(rate, decode_rate, forward, pictures, conditions)


def _encoded(part: Task) -> list[tuple[str, bytes]]:
    """Return key and encoded image of those samples that can be decoded."""
    found, why = [], ""
    for key, content in images([part.samples]):
        if isinstance(content, str):
            why = content
        elif damage := _damage(content):
            why = damage
        else:
            found.append((key, content))
    if not found:
        raise ValueError(f"expected images to measure on, got {why}: mend it, or give --rate")
    return found


def _damage(content: bytes) -> str:
    try:
        decode(content)
    except ValueError as error:
        return str(error)
    return ""


def _rendered(embedder: Embedder, key: str, content: bytes) -> np.ndarray:
    recipe, size = embedder.recipe, embedder.backbone.preprocessing
    return render(decode(content), recipe.views, size, recipe.seed, key)


def _rate(counts: Iterator[int], seconds: float) -> tuple[float, int]:
    """Return units per second, and units, of an endless iterator; its first are not counted."""
    next(counts)  # what is slow only once
    start, done, spent = time.monotonic(), 0, 0.0
    while spent < seconds or not done:
        done += next(counts)
        spent = time.monotonic() - start
    return done / spent, done
