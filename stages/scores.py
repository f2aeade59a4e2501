"""What heads say of stores: their uncertainties, and the hits of their own neighbours.

Comes in: heads and images of stores. Goes out: numpy columns, a row per seed. Embeddings are read
some at a time, so that a set need not fit into memory.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float64

from askance.eval.mixture import union_label
from askance.eval.retrieval import neighbours
from askance.eval.summary import Scores
from askance.features.store import FeatureStore
from askance.heads.checkpoint import SavedHead, load
from askance.heads.head import AT_A_TIME
from askance.stages.cases import Images, Mixed

Seeds = Sequence[SavedHead]  # of one head


def read_heads(folder: Path) -> list[list[SavedHead]]:
    """Read all heads: a list per name, its seeds in order, in the order they were asked for.

    Raises:
        FileNotFoundError: there is none.
    """
    saved = [load(path) for path in folder.glob("*.safetensors")]
    if not saved:
        raise FileNotFoundError(f"expected heads in {folder}, got none: run train")
    saved.sort(key=lambda head: (head.note["place"], head.seed))
    return [list(group) for _, group in groupby(saved, key=lambda head: head.name)]


def score(seeds: Seeds, queries: Images, mixture: Mixed | None) -> Scores:
    """Ask the seeds of one head about a set's queries, and the images of its mixture."""
    for saved in seeds:
        saved.check_backbone(queries.store.backbone, str(queries.store.path))
    mapped, hit, mixed, mixed_hit = seeds[0].head.mapped, None, None, None
    if mapped:
        hit = np.stack([_own_hit(saved, queries) for saved in seeds])
    if mixture:
        halves = mixture.upstream, mixture.downstream
        mixed = np.concatenate([uncertainty(seeds, half, "plain") for half in halves], axis=1)
        if mapped:
            mixed_hit = np.stack([_own_mixed_hit(saved, *halves) for saved in seeds])
    return Scores(
        head=seeds[0].name,
        seeds=[saved.seed for saved in seeds],
        plain=uncertainty(seeds, queries, "plain"),
        cropped=uncertainty(seeds, queries, "crop"),
        mixed=mixed,
        hit=hit,
        mixed_hit=mixed_hit,
    )


def uncertainty(seeds: Seeds, images: Images, view: str) -> Float64[np.ndarray, "s q"]:
    """Return the uncertainty of each image, a row per seed."""
    parts = []
    for start in range(0, len(images.row), AT_A_TIME):
        places = images.places[start : start + AT_A_TIME]
        embedding = torch.from_numpy(images.store.some(view, places))
        parts.append(
            np.stack([saved.head.uncertainty(embedding).double().numpy() for saved in seeds])
        )
    return np.concatenate(parts, axis=1)


def percentile(seeds: Seeds, plain: Float64[np.ndarray, "s q"]) -> Float64[np.ndarray, " q"]:
    """Return uncertainties as percentiles of the upstream set, the mean over seeds."""
    each = [saved.percentile(one) for saved, one in zip(seeds, plain, strict=True)]
    return np.mean(each, axis=0)


class _Mapped:
    """What a head maps the embeddings of a store to, computed when sliced."""

    def __init__(self, saved: SavedHead, store: FeatureStore) -> None:
        self.head, self.rows = saved.head, store.slices("plain")
        self.shape = self.rows.shape

    @torch.inference_mode()
    def __getitem__(self, part: slice) -> np.ndarray:
        return self.head.representation(torch.from_numpy(self.rows[part])).numpy()


def _own_hit(saved: SavedHead, queries: Images) -> Bool[np.ndarray, " q"]:
    """Return which queries have the label of the neighbour that a head's own map finds."""
    found = neighbours(_Mapped(saved, queries.store), queries=queries.places)
    return queries.label == queries.store.labels[found.row]


def _own_mixed_hit(
    saved: SavedHead, upstream: Images, downstream: Images
) -> Bool[np.ndarray, " m"]:
    halves = [
        saved.head.representation(torch.from_numpy(half.store.some("plain", half.places)))
        for half in (upstream, downstream)
    ]
    label = union_label(upstream.label, downstream.label)
    return label == label[neighbours(torch.cat(halves).numpy()).row]
