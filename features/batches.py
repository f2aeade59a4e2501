"""Training batches: rows of the upstream store with their losses, shuffled at memory speed.

Comes in: the upstream store and the store of its losses. Goes out: numbered steps of rows, of pairs
of views or of both, from one reading. Rows that fit are kept in memory; else they come in windows
of whole blocks, read ahead of their use.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count, takewhile, tee
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from askance.features.embeddings import Embeddings
from askance.features.store import FeatureStore
from askance.features.targets import check_same, columns_of, losses_of
from askance.pipeline.lanes import ahead
from askance.pipeline.seeding import generator

READERS = 2  # threads: one waits for the disk, one converts; more only fight for the interpreter
PER_ROW = 64  # bytes of memory besides the embedding: place, orders, loss and column
CPU = torch.device("cpu")


class Rows(NamedTuple):
    """Rows of the upstream store, one view of an image each; neighbours (2i, 2i + 1) form pairs.

    `loss` is in nats, float32; `column` is the label's, among the classifier's.
    """

    embedding: Float[Tensor, "b d"]
    loss: Float[Tensor, " b"]
    column: Int64[Tensor, " b"]


class Step(NamedTuple):
    """The batches of a step: `rows` are random; in `pairs` neighbours are two views of one image.

    `blocks` are those that the rows were drawn from.
    """

    number: int
    rows: Rows | None
    pairs: Rows | None
    blocks: tuple[int, ...]


class Window(NamedTuple):
    """Blocks that are shuffled together, for the steps `first` to `first + steps` (exclusive)."""

    epoch: int
    number: int
    blocks: tuple[int, ...]
    first: int
    steps: int


class Loaded(NamedTuple):
    """A window's rows, the views of an image side by side; `place` is where each is in `pool`."""

    pool: Float[Tensor, "p d"]
    place: Int64[Tensor, " r"]
    loss: Float[Tensor, " r"]
    column: Int64[Tensor, " r"]


class Batches:
    """The steps of a training: the same ones for the same stores and arguments.

    An epoch deals every row once; fewer rows than a batch, left over by a window, are dropped. If
    all rows fit in `memory`, an epoch is one window, in a uniformly random order. If not, a window
    is as many random blocks as leave room to read the next ones, in a uniformly random order: two
    rows of a batch are of one block with a chance of about 1 / (blocks of a window), not 1 /
    (blocks of the store); any two different blocks meet equally often.

    There are as many batches of pairs as of rows. Every image of a window gives one pair, of two
    random views, before any gives another; with more than two views images go round again.
    """

    def __init__(
        self,
        features: FeatureStore,
        losses: FeatureStore,
        *,
        batch: int,
        rows: bool,
        pairs: bool,
        held_out: Bool[np.ndarray, " m"],
        seed: int,
        loss: str = "loss",
        dtype: torch.dtype = torch.float32,
        device: torch.device = CPU,
        memory: int = 8 * 2**30,
    ) -> None:
        """Check the stores and plan; no embedding is read.

        Args:
            features: the upstream store.
            losses: the store of its losses, from probe.
            batch: rows of a step.
            rows: whether steps have random rows.
            pairs: whether they have pairs of views.
            held_out: which of the store's done rows are images that no step shows.
            seed: of the order.
            loss: the name of the array of losses.
            dtype: of embeddings in a batch. In memory they are as stored, unless this is bfloat16.
            device: where batches go. A GPU keeps all rows, if half of its free memory is enough.
            memory: bytes that rows, losses and orders may take. It decides the order, too.

        Raises:
            ValueError: stores that don't belong together or that nothing can be learnt from; too
                few rows or views; too little memory.
        """
        check_same(features, losses)
        if pairs and len(features.views) < 2:
            raise ValueError(
                f"expected two views of each image in {features.path} for pairs, got"
                f" {features.views}: extract with --views augment --views augment"
            )
        if pairs and batch % 2:
            raise ValueError(
                f"expected an even batch, whose rows form pairs, got {batch}: make train.batch even"
            )
        self.features, self.source = features, Embeddings(features)
        self.batch, self.rows, self.pairs, self.seed = batch, rows, pairs, seed
        self.dtype, self.device = dtype, device
        self.used = self.source.done.copy()
        self.used[features.rows[held_out]] = False
        self.loss = torch.from_numpy(losses_of(features, losses, loss))
        self.column = torch.from_numpy(columns_of(features, losses))
        self.views, self.dim, self.block = self.source.views, self.source.dim, self.source.block
        starts = np.arange(0, len(self.used), self.block)
        self.counts = np.add.reduceat(self.used, starts, dtype=np.int64) * self.views
        self.kept = dtype if dtype == torch.bfloat16 else self.source.stored
        self.window, self.ahead = self._room(memory)
        self.windows = -(-len(starts) // self.window)  # of an epoch
        self._check_enough()
        self._whole: Tensor | None = None

    def steps(self, first: int, last: int) -> Iterator[Step]:
        """Yield the steps `first` to `last` (exclusive); no window before them is read.

        Raises:
            ValueError: an embedding is not finite, or its file is cut off.
        """
        windows = takewhile(lambda window: window.first < last, self._windows(first))
        for window, loaded in self._loaded(windows):
            rows = self._random(window) if self.rows else None
            pairs = self._paired(window) if self.pairs else None
            for number in range(max(first, window.first), min(last, window.first + window.steps)):
                start = (number - window.first) * self.batch
                part = slice(start, start + self.batch)
                yield Step(
                    number,
                    None if rows is None else self._batch(loaded, rows[part]),
                    None if pairs is None else self._batch(loaded, pairs[part]),
                    window.blocks,
                )

    def _room(self, memory: int) -> tuple[int, int]:
        """Return the blocks of a window, and those read ahead of it: all and 0 if they fit."""
        view, blocks = self.block * self.dim, len(self.counts)
        always = self.loss.nbytes + self.column.nbytes + READERS * self.source.memory
        each = self.views * (view * self.kept.itemsize + self.block * PER_ROW)
        if always + blocks * each <= memory:
            return blocks, 0
        fit = (memory - always) // each
        if fit < 3:
            raise ValueError(
                f"expected memory for two blocks of {self.features.path} and one read ahead,"
                f" {always + min(blocks, 3) * each:,} bytes, got {memory:,}: allow more, or extract"
                " with a smaller extract.block"
            )
        return fit - fit // 2, fit // 2

    def _check_enough(self) -> None:
        """Check that each window has a batch, whichever blocks fall into it."""
        blocks = len(self.counts) // self.windows
        least = np.sort(self.counts)[:blocks].sum()
        if least < self.batch:
            where = f" in any {blocks} blocks" if self.ahead else ""
            raise ValueError(
                f"expected at least train.batch={self.batch} rows{where}, got {least} in"
                f" {self.features.path}: lower it{', or allow more memory' if where else ''}"
            )

    def _windows(self, first: int) -> Iterator[Window]:
        """Yield the windows without end, from the one of the step `first` on."""
        blocks = np.arange(len(self.counts))
        steps = int(self.counts.sum()) // self.batch  # of an epoch of one window
        skipped = 0 if self.ahead else first // steps
        start = skipped * steps
        for epoch in count(skipped):
            if self.ahead:
                blocks = generator("batches", self.seed, epoch, "blocks").permutation(len(blocks))
            for number, part in enumerate(np.array_split(blocks, self.windows)):
                steps = int(self.counts[part].sum()) // self.batch
                if start + steps > first:
                    yield Window(epoch, number, tuple(part.tolist()), start, steps)
                start += steps

    def _loaded(self, windows: Iterator[Window]) -> Iterator[tuple[Window, Loaded]]:
        """Load window after window, reading ahead while one is in use."""
        if not self.ahead:
            for window in windows:
                yield window, self._about(self._all(), window, window.blocks)
            return
        windows, coming = tee(windows)
        blocks = enumerate(block for window in coming for block in window.blocks)
        # They go round in the pool. When the i-th is waited for, those up to the (i + ahead)-th
        # are begun. The last takes the place of the (i - window)-th, which was in a former window.
        pool = self._pool(self.window + self.ahead)
        places = ((number % len(pool), block) for number, block in blocks)
        threads = ThreadPoolExecutor(READERS)
        try:
            filled = ahead(threads, partial(self._fill, pool), places, self.ahead + 1)
            for window in windows:
                found = tuple(next(filled) for _ in window.blocks)
                yield window, self._about(pool, window, found)
        finally:
            threads.shutdown(cancel_futures=True)

    def _all(self) -> Tensor:
        """Return all blocks, read when first asked for."""
        if self._whole is None:
            pool = self._pool(len(self.counts))
            with ThreadPoolExecutor(READERS) as threads:
                places = ((block, block) for block in range(len(pool)))
                for _ in ahead(threads, partial(self._fill, pool), places, 2 * READERS):
                    pass
            gpu = self.device.type == "cuda"
            fits = gpu and 2 * pool.nbytes < torch.cuda.mem_get_info(self.device)[0]
            self._whole = pool.to(self.device) if fits else pool
        return self._whole

    def _pool(self, blocks: int) -> Tensor:
        return torch.empty(blocks, self.views, self.block, self.dim, dtype=self.kept)

    def _fill(self, pool: Tensor, item: tuple[int, int]) -> int:
        """Read a block into its place in the pool; return the place."""
        place, block = item
        for view in range(self.views):
            self.source.read(block, view, pool[place, view])
        return place

    def _about(self, pool: Tensor, window: Window, places: tuple[int, ...]) -> Loaded:
        """Say where the rows of a window lie, whose blocks lie at `places` of the pool."""
        images, starts = [], []
        for block, place in zip(window.blocks, places, strict=True):
            used = np.flatnonzero(self.used[block * self.block : (block + 1) * self.block])
            images.append(block * self.block + used)
            starts.append(place * self.views * self.block + used)
        image, start = (torch.from_numpy(np.concatenate(part)) for part in (images, starts))
        views = torch.arange(self.views) * self.block
        column = self.column[image, None].expand(-1, self.views)
        about = (start[:, None] + views, self.loss[image], column)
        return Loaded(pool.flatten(0, 2), *(part.flatten().to(pool.device) for part in about))

    def _random(self, window: Window) -> Int64[Tensor, " r"]:
        """Return the rows of a window in random order."""
        random = generator("batches", self.seed, window.epoch, "rows", window.number)
        return torch.from_numpy(random.permutation(self.counts[list(window.blocks)].sum()))

    def _paired(self, window: Window) -> Int64[Tensor, " p"]:
        """Return rows of a window, of which neighbours are two views of one image."""
        images = int(self.counts[list(window.blocks)].sum()) // self.views
        names = ("batches", self.seed, window.epoch, "pairs", window.number)
        turns = []
        for turn in range(-(-window.steps * self.batch // (2 * images))):
            random = generator(*names, turn)
            image = random.permutation(images) * self.views
            view = random.integers(self.views, size=images)
            other = (view + random.integers(1, self.views, size=images)) % self.views
            turns.append(np.stack([image + view, image + other], axis=1).ravel())
        return torch.from_numpy(np.concatenate(turns))

    def _batch(self, loaded: Loaded, order: Int64[Tensor, " b"]) -> Rows:
        order = order.to(loaded.pool.device)
        embedding = self._gather(loaded.pool, loaded.place.index_select(0, order))
        loss, column = (self._gather(part, order) for part in (loaded.loss, loaded.column))
        return Rows(embedding.to(self.dtype), loss, column)

    def _gather(self, rows: Tensor, order: Int64[Tensor, " b"]) -> Tensor:
        """Return some rows, on the device."""
        if rows.device.type == self.device.type:
            return rows.index_select(0, order)
        # Pinned memory is copied without waiting for it; torch keeps it until that is done.
        pinned = torch.empty(len(order), *rows.shape[1:], dtype=rows.dtype, pin_memory=True)
        torch.index_select(rows, 0, order, out=pinned)
        return pinned.to(self.device, non_blocking=True)
