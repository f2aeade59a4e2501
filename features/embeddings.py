"""Embeddings of a store, block by block, at the disk's speed and in the type that is wanted."""

import threading
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from askance.features.store import DONE, FeatureStore

AT_A_TIME = 1 << 19  # numbers converted at a time: they stay in the processor's caches
BARE = ({"name": "bytes", "configuration": {"endian": "little"}},)  # codecs of plain numbers


class Buffers(threading.local):
    """What each thread reads into, and widens to float32."""

    def __init__(self, numbers: int, stored: torch.dtype) -> None:
        self.stored = torch.empty(numbers, dtype=stored)
        self.wide = torch.empty(numbers)


class Embeddings:
    """The embeddings of a store; any number of threads may read at once."""

    def __init__(self, store: FeatureStore) -> None:
        self.store, self.source = store, store.array("embedding")
        images, self.views, self.dim = self.source.shape
        self.block = min(self.source.chunks[0], images)
        self.stored: torch.dtype = getattr(torch, self.source.dtype.name)
        self.done = store.status == DONE
        metadata: Any = self.source.metadata
        bare = tuple(codec.to_dict() for codec in metadata.codecs) == BARE
        self.folder = store.path / "embedding" if bare and isinstance(store.path, Path) else None
        self.buffers = Buffers(min(self.block * self.dim, AT_A_TIME), self.stored)

    @property
    def memory(self) -> int:
        """The bytes that a thread takes to read."""
        view = self.block * self.dim
        reading = min(view, AT_A_TIME) * (4 + self.stored.itemsize)
        if self.folder is None:  # Zarr has a chunk in memory twice: its file, and that decoded
            reading += 2 * view * self.stored.itemsize
        return reading

    def read(self, block: int, view: int, out: Tensor) -> None:
        """Read a view of a block into the first rows of `out`.

        Raises:
            ValueError: a done row is not finite.
        """
        done = self.done[block * self.block : (block + 1) * self.block]
        out, total = out[: len(done)], 0.0
        parts = self._stored(block, view, out.numel())
        for stored, kept in zip(parts, out.view(-1).split(AT_A_TIME), strict=True):
            # By way of float32: torch takes several times as long from float16 to bfloat16.
            wide = self.buffers.wide[: len(stored)].copy_(stored)
            total += wide.sum().item()
            kept.copy_(stored if stored.dtype == kept.dtype else wide)
        # Refused rows are NaN; blocks without any pass the first test, which is quick.
        if isfinite(total) or (rows := out[torch.from_numpy(done)]).isfinite().all():
            return
        raise ValueError(
            f"expected finite embeddings, got {rows[~rows.isfinite()][0]} in block {block} of"
            f" {self.store.path}: verify the store"
        )

    def _stored(self, block: int, view: int, numbers: int) -> Iterator[Tensor]:
        """Yield a view of a block as stored, flat and some numbers at a time.

        Files of bare numbers are read as they are; Zarr's way costs several times as much.
        """
        if self.folder is None:
            rows = slice(block * self.block, (block + 1) * self.block)
            yield from torch.from_numpy(self.source[rows, view]).view(-1).split(AT_A_TIME)
            return
        file = self.folder / self.source.metadata.encode_chunk_key((block, view, 0))
        with file.open("rb") as opened:
            opened.peek()  # begun with a page, Linux reads ahead in growing steps: twice as fast
            for left in range(numbers, 0, -AT_A_TIME):
                part = self.buffers.stored[:left]
                if opened.readinto(part.numpy().data) != part.nbytes:
                    raise ValueError(
                        f"expected {numbers:,} numbers in {file}, got fewer: verify the store"
                    )
                yield part
