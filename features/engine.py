"""The engine: batches of pixels through the backbone, in order, without waiting for the device."""

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor
from torch.nn.functional import pad

from askance.features.backbone import Backbone

IN_FLIGHT = 2  # batches that a GPU is given before the first one's embeddings are waited for


@dataclass
class Engine:
    """Embeds batches of at most `batch` pictures.

    The network always sees `batch` pictures, black ones behind the last: a compiled network would
    be compiled again for another shape, and the rounding of a row may depend on the shape. Where
    so many don't fit into a GPU's memory, `batch` is halved, for good.
    """

    backbone: Backbone
    batch: int

    def embed(
        self, batches: Iterable[UInt8[np.ndarray, "_ h w 3"]]
    ) -> Iterator[Float32[np.ndarray, "_ d"]]:
        """Yield the embeddings of each batch, in order.

        A GPU works on the next batches meanwhile: pixels go up from pinned memory and embeddings
        come down to it without waiting.

        Raises:
            torch.OutOfMemoryError: not even one picture fits.
        """
        on_gpu = self.backbone.device.type == "cuda"
        waiting: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
        for pixels in batches:
            source = torch.from_numpy(pixels)
            embedding = self._forward(source.pin_memory() if on_gpu else source)
            waiting.append((embedding.to("cpu", non_blocking=on_gpu), _event() if on_gpu else None))
            if len(waiting) > (IN_FLIGHT if on_gpu else 0):
                yield _wait(*waiting.popleft())
        while waiting:
            yield _wait(*waiting.popleft())

    def _forward(self, pixels: UInt8[Tensor, "b h w 3"]) -> Float32[Tensor, "b d"]:
        while True:
            try:
                return torch.cat([self._padded(part) for part in pixels.split(self.batch)])
            except torch.OutOfMemoryError:
                if self.batch == 1:
                    raise
                self.batch //= 2
            torch.cuda.empty_cache()
            print(f"out of memory: going on with batches of {self.batch}", file=sys.stderr)

    @torch.inference_mode()
    def _padded(self, pixels: UInt8[Tensor, "b h w 3"]) -> Float32[Tensor, "b d"]:
        black = self.batch - len(pixels)
        there = pixels.to(self.backbone.device, non_blocking=self.backbone.device.type == "cuda")
        batch = pad(there, (0, 0) * 3 + (0, black))
        # Channels come last in memory already: the permuted view is the layout we want.
        return self.backbone(batch.permute(0, 3, 1, 2))[: len(pixels)]


def _event() -> torch.cuda.Event:
    event = torch.cuda.Event()
    event.record()
    return event


def _wait(embedding: Tensor, event: torch.cuda.Event | None) -> np.ndarray:
    if event is not None:
        event.synchronize()
    return embedding.numpy()
