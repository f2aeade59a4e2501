"""Pictures to blocks of arrays: the order of work from shards to embeddings."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice, tee

import numpy as np
from jaxtyping import Float32, UInt8

from askance.features.backbone import Backbone, load_backbone
from askance.features.blocks import Block, Task
from askance.features.classify import Classifier, scores, top
from askance.features.engine import Engine
from askance.features.index import Index
from askance.features.layout import Array, Layout
from askance.features.reader import images
from askance.features.recipe import Recipe
from askance.features.views import RENDERING, View, crop_fraction, decode, render
from askance.pipeline.devices import device as pick
from askance.pipeline.lanes import ahead
from askance.pipeline.provenance import machine, versions

# Part of every store's fingerprint: raise it when what is computed from the pixels changes, or
# stores made before would be continued (test_the_embedding_is_that_of_this_version).
COMPUTATION = 2
TOP = 32  # logits kept per row and view by "top"
AHEAD = 4  # batches that are decoded before the backbone asks for them ...
AHEAD_BYTES = 256 << 20  # ... unless their encoded images have more than this

Loaded = np.ndarray | str  # the pixels of all views, (v, h, w, 3) uint8, or why there are none


@dataclass(frozen=True)
class Embedded:
    """What became of a task: the rows of its block, their arrays, and the refusals by row."""

    block: Block
    rows: list[int]
    arrays: dict[str, np.ndarray]
    refused: dict[int, str]


@dataclass(frozen=True)
class Embedder:
    """A recipe with its backbone on a device; `classifier` is the backbone's own where wanted."""

    recipe: Recipe
    backbone: Backbone
    classifier: Classifier | None

    @classmethod
    def load(cls, recipe: Recipe) -> "Embedder":
        """Load the backbone onto the recipe's device.

        Raises:
            ValueError: an unknown backbone, weights that don't fit, one without a linear classifier
                where its own is wanted, no such device.
            OSError: weights that can't be had.
        """
        r = recipe
        backbone = load_backbone(r.backbone, r.weights, r.size, r.preprocess, r.precision)
        own = backbone.classifier() if r.classifier == "own" else None
        if r.classifier == "own" and own is None:
            raise ValueError(
                f"expected a backbone with a linear classifier, got {r.backbone}: set"
                " upstream.classifier to none (--classifier none), and a probe is fitted on the"
                " embeddings"
            )
        backbone.to(pick(r.device))
        if r.compile:
            backbone.compile_network()
        return cls(r, backbone, own)

    def layout(self, index: Index) -> Layout:
        """Say what the store of a set will hold, and everything that decides its content.

        Raises:
            ValueError: a label is no column of the backbone's own classifier.
        """
        recipe, own = self.recipe, self.classifier
        v, d = len(recipe.views), self.backbone.width
        arrays = {"embedding": Array((v, d), recipe.dtype, (1, d))}
        known, whole = {}, {}
        if own is not None:
            _check_labels(index, len(own.bias), recipe.backbone)
            arrays |= score_arrays(recipe, v, len(own.bias))
            whole = {"classifier/weight": own.weight, "classifier/bias": own.bias}
        if View.CROP in recipe.views:
            crops = [crop_fraction(recipe.seed, key) for key in index.keys]
            known["crop"] = np.array(crops, np.float32)
        if (votes := _votes(index)) is not None:
            known["votes"] = votes
        made = {"data": str(index.folder), "recipe": asdict(recipe)}
        made |= {"versions": versions(), "machine": machine()}
        return Layout(arrays, recipe.block, self._content(), made, known, whole)

    def _content(self) -> dict[str, object]:
        recipe, own = self.recipe, self.classifier is not None
        return {
            "backbone": recipe.backbone,
            "weights": self.backbone.weights_hash(),
            "preprocessing": asdict(self.backbone.preprocessing),
            "precision": recipe.precision,
            "compile": recipe.compile,
            "views": [str(view) for view in recipe.views],
            "rendering": RENDERING,
            "computation": COMPUTATION,
            "batch": recipe.batch,
            "device": self.backbone.device.type,
            "seed": recipe.seed,
            "dtype": recipe.dtype,
            "classifier": own,
            "logits": recipe.logits if own else "none",
        }

    def embed(self, tasks: Iterable[Task]) -> Iterator[Embedded]:
        """Embed tasks in order; while one is computed, the next is read and decoded.

        The batches of a task hold the same images in every run, so that a resume gives the same
        bytes. Black takes the place of a refused image, so that the others don't depend on it.
        """
        per = self.recipe.images
        engine = Engine(self.backbone, per * len(self.recipe.views))
        to_read, to_batch, to_yield = tee(tasks, 3)
        sent: deque[dict[int, str]] = deque()  # refusals, by place, of the batches on their way
        with ThreadPoolExecutor(self.recipe.threads) as pool:
            samples = images(task.samples for task in to_read)
            loaded = ahead(pool, self._load, samples, AHEAD * per, _bytes, AHEAD_BYTES)
            embedded = engine.embed(self._batches(to_batch, loaded, sent))
            for task in to_yield:
                count = -(-len(task.samples) // per)
                embedding = np.concatenate(list(islice(embedded, count)))
                refused: dict[int, str] = {}
                for start in range(0, len(task.samples), per):
                    refused |= {start + place: why for place, why in sent.popleft().items()}
                yield self.embedded(task, embedding, refused)

    def _load(self, sample: tuple[str, bytes | str]) -> Loaded:
        key, content = sample
        if isinstance(content, str):
            return content
        try:
            image = decode(content)
        except ValueError as error:
            return str(error)
        recipe = self.recipe
        return render(image, recipe.views, self.backbone.preprocessing, recipe.seed, key)

    def _batches(
        self, tasks: Iterable[Task], loaded: Iterator[Loaded], sent: deque[dict[int, str]]
    ) -> Iterator[UInt8[np.ndarray, "_ h w 3"]]:
        per, side = self.recipe.images, self.backbone.preprocessing.size
        black = np.zeros((len(self.recipe.views), side, side, 3), np.uint8)
        for task in tasks:
            for start in range(0, len(task.samples), per):
                batch = list(islice(loaded, min(per, len(task.samples) - start)))
                sent.append({place: x for place, x in enumerate(batch) if isinstance(x, str)})
                yield np.concatenate([black if isinstance(x, str) else x for x in batch])

    def embedded(
        self, task: Task, flat: Float32[np.ndarray, "nv d"], refused: dict[int, str]
    ) -> Embedded:
        """Return what becomes of a task with these embeddings; `refused` is by place in it.

        Those that are not finite are refused, too; all others are scored.
        """
        embedding = flat.reshape(len(task.samples), len(self.recipe.views), -1)
        for place in np.flatnonzero(~np.isfinite(embedding).all(axis=(1, 2))).tolist():
            refused.setdefault(place, "expected a finite embedding, got NaN or infinity")
        embedding[list(refused)] = np.nan
        rows = task.samples["row"].to_pylist()
        by_row = {rows[place]: why for place, why in sorted(refused.items())}
        arrays = self._arrays(embedding, task.samples["label"].to_numpy())
        return Embedded(task.block, rows, arrays, by_row)

    def _arrays(
        self, embedding: Float32[np.ndarray, "n v d"], label: np.ndarray
    ) -> dict[str, np.ndarray]:
        arrays: dict[str, np.ndarray] = {"embedding": embedding}
        if self.classifier is None:
            return arrays
        # By batches: the logits of a whole block may not fit into memory.
        cuts = [slice(n, n + self.recipe.images) for n in range(0, len(label), self.recipe.images)]
        parts = [self._scores(self.classifier, embedding[cut], label[cut]) for cut in cuts]
        return arrays | {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}

    def _scores(
        self, classifier: Classifier, embedding: Float32[np.ndarray, "n v d"], label: np.ndarray
    ) -> dict[str, np.ndarray]:
        logits = classifier.logits(embedding)
        found: dict[str, np.ndarray] = scores(logits, label)
        if self.recipe.logits == "full":
            found["logits"] = logits
        if self.recipe.logits == "top":
            found |= top(logits, min(TOP, logits.shape[-1]))
        return found


def _bytes(sample: tuple[str, bytes | str]) -> int:
    return len(sample[1])


def _votes(index: Index) -> np.ndarray | None:
    """Return the votes, (n, c) int32, 0 where nobody voted; None where there are none at all."""
    votes = index.table["votes"].to_pylist()
    columns = max((len(row) for row in votes if row), default=0)
    if not columns:
        return None
    return np.array([row or [0] * columns for row in votes], np.int32)


def score_arrays(recipe: Recipe, v: int, c: int) -> dict[str, Array]:
    """Return the schema of what a classifier of `c` classes says of `v` views."""
    arrays = {name: Array((v,), "float32", (v,)) for name in ("loss", "logsumexp", "entropy")}
    if recipe.logits == "full":
        arrays["logits"] = Array((v, c), "float16", (1, c))
    if recipe.logits == "top":
        k = min(TOP, c)
        arrays["logits_top"] = Array((v, k), "float16", (1, k))
        arrays["logits_top_index"] = Array((v, k), "int32", (1, k))
    return arrays


def _check_labels(index: Index, columns: int, name: str) -> None:
    lowest, highest = int(index.labels.min()), int(index.labels.max())
    if lowest < 0 or highest >= columns:
        raise ValueError(
            f"expected labels from 0 to {columns - 1} (the classifier of {name}), got {lowest} to"
            f" {highest} in {index.folder}: set upstream.classifier to none, or map the labels to"
            " its columns"
        )
