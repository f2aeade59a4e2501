"""What heads say of stores: their uncertainties, and the hits of their own neighbours.

Comes in: heads and images of stores. Goes out: numpy columns, a row per seed. Embeddings are read
some at a time, so that a set need not fit into memory.
"""

from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int64

from askance.eval.mixture import union_label
from askance.eval.retrieval import neighbours
from askance.eval.summary import Uncertainties
from askance.features.store import FeatureStore
from askance.heads.checkpoint import SavedHead, load
from askance.heads.head import AT_A_TIME
from askance.stages.cases import Images, Mixed

Seeds = Sequence[SavedHead]  # of one head


def read_heads(folder: Path, losses: FeatureStore) -> list[list[SavedHead]]:
    """Read all heads: a list per name, its seeds in order, in the order they were asked for.

    Raises:
        FileNotFoundError: there is none.
        ValueError: one was trained on other losses.
    """
    saved = [load(path) for path in folder.glob("*.safetensors")]
    if not saved:
        raise FileNotFoundError(f"expected heads in {folder}, got none: run train")
    if any(head.note.get("probe") != losses.fingerprint for head in saved):
        raise ValueError(f"expected heads trained on {losses.path}, got others: run train again")
    saved.sort(key=lambda head: (head.note["place"], head.seed))
    return [list(group) for _, group in groupby(saved, key=lambda head: head.name)]


def answers(seeds: Seeds, queries: Images, mixture: Mixed | None) -> Uncertainties:
    """Return what the seeds of one head say of a set's queries, and the images of its mixture."""
    for saved in seeds:
        saved.check_backbone(queries.store.backbone, str(queries.store.path))
    mapped, near, hit, mixed, mixed_hit = seeds[0].head.mapped, None, None, None, None
    if mapped:
        found = np.stack([_own_neighbours(saved, queries) for saved in seeds])
        hit = queries.label == queries.store.labels[found]
        near = queries.store.rows[found]
    if mixture:
        halves = mixture.upstream, mixture.downstream
        mixed = np.concatenate([uncertainty(seeds, half, "plain") for half in halves], axis=1)
        if mapped:
            mixed_hit = np.stack([_own_mixed_hit(saved, *halves) for saved in seeds])
    return Uncertainties(
        head=seeds[0].name,
        seeds=[saved.seed for saved in seeds],
        plain=uncertainty(seeds, queries, "plain"),
        cropped=uncertainty(seeds, queries, "crop"),
        mixed=mixed,
        near=near,
        hit=hit,
        mixed_hit=mixed_hit,
    )


def uncertainty(
    seeds: Seeds, images: Images, view: str, advance: Callable[[int], None] = lambda count: None
) -> Float64[np.ndarray, "s q"]:
    """Return the uncertainty of each image, a row per seed; `advance` is told of images done."""
    parts, places = [], images.places
    for start in range(0, len(places), AT_A_TIME):
        embedding = torch.from_numpy(images.store.some(view, places[start : start + AT_A_TIME]))
        parts.append(
            np.stack([saved.head.uncertainty(embedding).double().numpy() for saved in seeds])
        )
        advance(len(embedding))
    return np.concatenate(parts, axis=1)


def percentile(seeds: Seeds, plain: Float64[np.ndarray, "s q"]) -> Float64[np.ndarray, " q"]:
    """Return uncertainties as percentiles of the upstream set, the mean over seeds."""
    each = [saved.percentile(one) for saved, one in zip(seeds, plain, strict=True)]
    return np.mean(each, axis=0)


@torch.inference_mode()
def _own_neighbours(saved: SavedHead, queries: Images) -> Int64[np.ndarray, " q"]:
    """Return the place of each query's neighbour by a head's own map.

    Each row is mapped once, to a file: a product's rounding depends on the rows beside it, and the
    search, which reads rows many times, needs the same numbers each time.
    """
    rows = queries.store.slices("plain")
    with TemporaryFile() as file:
        mapped = np.memmap(file, np.float32, "w+", shape=rows.shape)
        for start in range(0, len(mapped), AT_A_TIME):
            part = slice(start, start + AT_A_TIME)
            mapped[part] = saved.head.representation(torch.from_numpy(rows[part])).numpy()
        return neighbours(mapped, queries=queries.places).row


def _own_mixed_hit(
    saved: SavedHead, upstream: Images, downstream: Images
) -> Bool[np.ndarray, " m"]:
    halves = [
        saved.head.representation(torch.from_numpy(half.store.some("plain", half.places)))
        for half in (upstream, downstream)
    ]
    label = union_label(upstream.label, downstream.label)
    return label == label[neighbours(torch.cat(halves).numpy()).row]
