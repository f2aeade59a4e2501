"""Pictures to blocks of arrays: the reader, the network and the order of work between them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Literal, TypeVar

import numpy as np
import torch
from jaxtyping import Float32

from askance.features.backbone import Backbone
from askance.features.blocks import Block
from askance.features.classify import Classifier, scores, top
from askance.features.index import Index
from askance.features.shards import ImageReader
from askance.features.views import RENDERING, View, crop_fraction, decode, render
from askance.features.writer import Array, Layout

T = TypeVar("T")
R = TypeVar("R")
LogitsKept = Literal["none", "top", "full"]
# Part of every store's fingerprint: raise it when what is computed from the pixels changes, or
# stores made before would be continued (test_the_embedding_is_that_of_this_version).
COMPUTATION = 1
TOP = 32  # logits kept per row and view by "top"

Loaded = np.ndarray | str  # the pixels of all views, (v, h, w, 3) uint8, or why there are none


@dataclass(frozen=True)
class Embedder:
    """How a set's pictures become arrays.

    `classifier` is the backbone's own where the labels are its columns, else None; `batch` counts
    pictures of one forward pass, all views together.
    """

    backbone: Backbone
    classifier: Classifier | None
    index: Index
    views: tuple[View, ...]
    logits: LogitsKept
    seed: int
    batch: int

    def layout(self, dtype: str, block: int, name: str) -> Layout:
        """Say what the store will hold, and everything that decides its content."""
        own, v, d = self.classifier, len(self.views), self.width
        arrays = {"embedding": Array((v, d), dtype, (1, d))}
        whole = {}
        if own is not None:
            arrays |= _score_arrays(v, len(own.bias), self.logits)
            whole = {"classifier/weight": own.weight, "classifier/bias": own.bias}
        if View.CROP in self.views:
            crops = [crop_fraction(self.seed, key) for key in self.index.keys]
            whole["crop"] = np.array(crops, np.float32)
        if (votes := _votes(self.index)) is not None:
            whole["votes"] = votes
        content = {
            "backbone": name,
            "weights": self.backbone.weights_hash(),
            "preprocessing": asdict(self.backbone.preprocessing),
            "precision": self.backbone.precision,
            "views": [str(view) for view in self.views],
            "rendering": RENDERING,
            "computation": COMPUTATION,
            "batch": self.batch,
            "device": self.backbone.device.type,
            "seed": self.seed,
            "dtype": dtype,
            "classifier": own is not None,
            "logits": self.logits if own is not None else "none",
        }
        return Layout(arrays, block, content, {}, whole)

    @property
    def width(self) -> int:
        """The number of values in an embedding."""
        return self.backbone(torch.zeros_like(self._blank())).shape[1]

    def embed(
        self, images: ImageReader, blocks: list[Block], threads: int
    ) -> Iterator[tuple[Block, dict[str, np.ndarray], dict[int, str]]]:
        """Yield each block with its arrays and its refusals ({row: reason}).

        Pictures are decoded and rendered by threads, ahead of the network. The batches of a block
        hold the same rows in every run, so that a resume gives the same bytes.
        """
        per_batch = max(1, self.batch // len(self.views))
        rows = [row for block in blocks for row in block.rows]
        with ThreadPoolExecutor(threads) as pool:
            loaded = ahead(pool, lambda row: self._load(images, row), rows, 4 * per_batch)
            for block in blocks:
                refused: dict[int, str] = {}
                parts = []
                for start in range(block.start, block.stop, per_batch):
                    batch = range(start, min(start + per_batch, block.stop))
                    parts.append(self._forward(list(islice(loaded, len(batch))), batch, refused))
                yield block, self._arrays(block, np.concatenate(parts)), refused

    def _load(self, images: ImageReader, row: int) -> Loaded:
        content = images.read(row)  # a shard that can't be read stops the run: nothing is refused
        try:
            image = decode(content)
        except ValueError as error:
            return str(error)
        return render(
            image, self.views, self.backbone.preprocessing, self.seed, self.index.keys[row]
        )

    def _forward(
        self, loaded: list[Loaded], rows: range, refused: dict[int, str]
    ) -> Float32[np.ndarray, "b v d"]:
        """Embed one batch; refused rows come out as NaN and are noted in `refused`.

        A refused row's place is filled with black, so that the shape of a batch, and with it the
        rounding of the other rows, doesn't depend on it.
        """
        bad = {row: x for row, x in zip(rows, loaded, strict=True) if isinstance(x, str)}
        side = self.backbone.preprocessing.size
        black = np.zeros((len(self.views), side, side, 3), np.uint8)
        pixels = np.stack([black if isinstance(x, str) else x for x in loaded])
        flat = torch.from_numpy(pixels.reshape(-1, side, side, 3)).to(self.backbone.device)
        embedding = self.backbone(flat).cpu().numpy().reshape(len(loaded), len(self.views), -1)
        for place in np.flatnonzero(~np.isfinite(embedding).all(axis=(1, 2))):
            bad.setdefault(rows[place], "expected a finite embedding, got NaN or infinity")
        embedding[[row - rows.start for row in bad]] = np.nan
        refused |= bad
        return embedding

    def _arrays(
        self, block: Block, embedding: Float32[np.ndarray, "n v d"]
    ) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {"embedding": embedding}
        if self.classifier is None:
            return arrays
        logits = self.classifier.logits(embedding)
        arrays |= scores(logits, self.index.labels[block.start : block.stop])
        if self.logits == "full":
            arrays["logits"] = logits
        if self.logits == "top":
            arrays |= top(logits, min(TOP, logits.shape[-1]))
        return arrays

    def _blank(self) -> torch.Tensor:
        side = self.backbone.preprocessing.size
        return torch.zeros(1, side, side, 3, dtype=torch.uint8, device=self.backbone.device)


def _votes(index: Index) -> np.ndarray | None:
    """Return the votes, (n, c) int32, -1 where nobody voted; None where there are none at all."""
    votes = index.table["votes"].to_pylist()
    columns = max((len(row) for row in votes if row), default=0)
    if not columns:
        return None
    return np.array([row or [-1] * columns for row in votes], np.int32)


def _score_arrays(v: int, c: int, logits: LogitsKept) -> dict[str, Array]:
    arrays = {name: Array((v,), "float32", (v,)) for name in ("loss", "logsumexp", "entropy")}
    if logits == "full":
        arrays["logits"] = Array((v, c), "float16", (1, c))
    if logits == "top":
        k = min(TOP, c)
        arrays["logits_top"] = Array((v, k), "float16", (1, k))
        arrays["logits_top_index"] = Array((v, k), "int32", (1, k))
    return arrays


def ahead(
    pool: ThreadPoolExecutor, function: Callable[[T], R], items: Iterable[T], depth: int
) -> Iterator[R]:
    """Map in order over threads, at most `depth` items ahead of the consumer."""
    waiting: deque[Future[R]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) >= depth:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def own_classifier(backbone: Backbone, name: str, index: Index) -> Classifier:
    """Return the backbone's own classifier, when the set's labels are its columns.

    Raises:
        ValueError: the backbone has no linear classifier, or a label is none of its columns.
    """
    own = backbone.classifier()
    if own is None:
        raise ValueError(
            f"expected a backbone with a linear classifier, got {name}: set upstream.classifier to"
            " none, and a probe is fitted on the embeddings"
        )
    lowest, highest = int(index.labels.min()), int(index.labels.max())
    if lowest < 0 or highest >= len(own.bias):
        raise ValueError(
            f"expected labels from 0 to {len(own.bias) - 1} (the classifier of {name}), got"
            f" {lowest} to {highest} in {index.folder}: set upstream.classifier to none, or map"
            " the labels to its columns"
        )
    return own
