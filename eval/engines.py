"""Engines of the neighbour search: they name the pairs of rows that may be nearest, in bulk.

Comes in: unit vectors. Goes out: pairs of rows, with a proof that no nearest one is missing;
`askance.eval.retrieval` scores them in float64, so that all engines give the same neighbours.
"""

from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from torch import Tensor

Pairs = tuple[Int64[np.ndarray, "..."], Int64[np.ndarray, "..."]]
GROUP = 64  # values of a tile whose largest tells whether to look closer
TERMS = 3  # bfloat16 numbers that add up to a float32
AS_WHOLE = {torch.bfloat16: torch.int16, torch.float32: torch.int32, torch.float64: torch.int64}


@dataclass(frozen=True)
class Block:
    """Some rows as an engine takes them."""

    operand: Any  # (m, k)
    length: Float64[np.ndarray, " m"]  # of each row, less the centre
    error: Float64[np.ndarray, " m"]  # how far it lies from the true one, at most
    term: Float64[np.ndarray, " m"]  # its product with the centre, without sign
    shift: float = 0.0  # what products lack to cosines

    @cached_property
    def turned(self) -> Tensor:
        """The operand as the second of a product: its ones where the first has its terms."""
        rows, term, one = self.operand.tensor_split([-2 * TERMS, -TERMS], dim=1)
        return torch.cat([rows, one, term], 1)


@runtime_checkable
class Engine(Protocol):
    """What names candidates."""

    tile: int  # rows of each block that a call of `candidates` should get

    @property
    def finer(self) -> "Engine | None":
        """What is asked where this one cannot tell; None: it always can."""

    def take(self, unit: Float32[np.ndarray, "m d"], centre: Float32[np.ndarray, " d"]) -> Block:
        """Take rows, whose lengths are 1 or 0 but for the rounding of float32.

        Args:
            unit: the rows.
            centre: about the mean of all rows, the same for all blocks.
        """

    def candidates(
        self,
        first: Block,
        second: Block,
        bar: Float64[np.ndarray, " m"],
        bar_second: Float64[np.ndarray, " k"] | None,
        own: Pairs,
    ) -> Pairs | None:
        """Name pairs of a row of one block and one of another.

        Every pair is named whose true cosine is at least the first row's bar, and not below that
        of any other pair of the first row here; and, unless there are no bars of the second rows,
        every pair of which the same holds for its second row. More may be named, `own` too.

        Args:
            first: a block that this engine took.
            second: likewise.
            bar: the least cosine that matters, by row of the first.
            bar_second: likewise of the second; None: its rows don't search.
            own: the pairs of a row and itself, which count for nothing.

        Returns:
            The pairs; None where they would be so many that `finer` should be asked.
        """


class Tiles:
    """Compares blocks by matrix products, each of which serves its rows and its columns."""

    def __init__(self, device: str, precision: torch.dtype) -> None:
        """Compare on a device of torch, rows being rounded to a precision.

        What is rounded to bfloat16 leaves pairs undecided now and then; these are compared again
        in a precision that never does.
        """
        self.device, self.precision = torch.device(device), precision
        self.cpu = self.device.type == "cpu"
        self.tile = 1024 if self.cpu else 8192
        self.buffer = torch.empty(self.tile**2 if self.cpu else 0, dtype=precision)
        # On a GPU products of float32 may be rounded far more, as a global switch of torch says.
        finest = torch.float32 if self.cpu else torch.float64
        self.finer = None if precision == finest else Tiles(device, finest)

    def take(self, unit: Float32[np.ndarray, "m d"], centre: Float32[np.ndarray, " d"]) -> Block:
        """Round the rows less the centre: what all rows share would only make rounding coarser.

        For a centre c, xy = (x - c)(y - c) + (x - c)c + (y - c)c + cc. The second and the third
        term become columns, times columns of ones; the last is left out of the products.
        """
        rows, middle = (torch.from_numpy(part).to(self.device) for part in (unit, centre))
        rows = rows - middle
        near, term = rows.to(self.precision), rows.double() @ middle.double()
        operand = near.new_ones(len(rows), len(middle) + 2 * TERMS)
        operand[:, : -2 * TERMS], left = near, term
        for column in range(-2 * TERMS, -TERMS):
            operand[:, column] = left
            left = left - operand[:, column]
        # Measured: half the worst case. Sums of d squares in float32 may lack some of it.
        error, length = (
            part.norm(dim=1).double().cpu().numpy() * (1 + len(middle) * 2.0**-23) + 2.0**-22
            for part in (rows - near, near.float())
        )
        shift = float(centre.astype(np.float64) @ centre)
        return Block(operand, length + error, error, term.abs().cpu().numpy(), shift)

    def candidates(
        self,
        first: Block,
        second: Block,
        bar: Float64[np.ndarray, " m"],
        bar_second: Float64[np.ndarray, " k"] | None,
        own: Pairs,
    ) -> Pairs | None:
        """See `Engine`; None where more than a 64th of the pairs would be named."""
        tile = self._product(first.operand, second.turned)
        tile[own] = -torch.inf
        i, j = _reaching(tile, 1, bar - first.shift, margin(first, second))
        if bar_second is not None:
            other = _reaching(tile, 0, bar_second - first.shift, margin(second, first))
            i, j = np.concatenate([i, other[1]]), np.concatenate([j, other[0]])
        return (i, j) if self.finer is None or len(i) <= tile.numel() / 64 else None

    def _product(self, first: Tensor, second: Tensor) -> Tensor:
        shape = len(first), len(second)
        if not self.cpu:  # whose products, in bfloat16, may even round sums in between
            wide = self.precision == torch.bfloat16
            return torch.mm(first, second.T, torch.float32) if wide else first @ second.T
        tile = self.buffer[: shape[0] * shape[1]].view(shape)
        if self.precision == torch.float32:
            # NumPy's is twice as fast as torch's where that is not made for the processor, and
            # never lowers the precision, whatever the global switch says.
            np.matmul(first.numpy(), second.numpy().T, out=tile.numpy())
            return tile
        return torch.mm(first, second.T, out=tile)


class Faiss:
    """Compares blocks by faiss's exact search in float32, on a GPU where faiss has one."""

    tile = 4096
    near = 8  # rows named per row

    def __init__(self) -> None:
        faiss = import_faiss()
        self.knn = faiss.knn
        self.options: dict[str, Any] = {"metric": faiss.METRIC_INNER_PRODUCT}
        if hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0:
            resources = faiss.StandardGpuResources()
            self.knn = lambda *args, **kwargs: faiss.knn_gpu(resources, *args, **kwargs)
        self.finer = Tiles("cpu", torch.float32)

    def take(self, unit: Float32[np.ndarray, "m d"], centre: Float32[np.ndarray, " d"]) -> Block:
        """Take rows as they are: the centre is left where it is."""
        one = np.ones(len(unit))
        return Block(unit, one, one * 2.0**-22, one * 0)

    def candidates(
        self,
        first: Block,
        second: Block,
        bar: Float64[np.ndarray, " m"],
        bar_second: Float64[np.ndarray, " k"] | None,
        own: Pairs,
    ) -> Pairs | None:
        """See `Engine`; None where a row that was not named may be as near as the best."""
        near = min(self.near, len(second.error))
        score, place = self.knn(first.operand, second.operand, near, **self.options)
        error = margin(first, second)
        # The row itself may be the best here, so that the bar is the second.
        best = score[:, 1] - error if near > 1 else np.full(len(bar), -np.inf)
        named = score >= (np.maximum(bar, best) - error)[:, None]
        if near < len(second.error) and named[:, -1].any():
            return None
        i, j = np.nonzero(named)[0], place[named].astype(np.int64)
        if bar_second is not None:
            other = self.candidates(second, first, bar_second, None, own)
            if other is None:
                return None
            i, j = np.concatenate([i, other[1]]), np.concatenate([j, other[0]])
        return i, j


def fastest(device: str = "cpu") -> Engine:
    """Return tiles on the device, in bfloat16 where its processor multiplies that faster.

    Without such units bfloat16 is slower than float32, by far.
    """
    units = [name for name, has in torch.cpu.get_capabilities().items() if has]
    fast = torch.device(device).type != "cpu" or any(name.endswith("bf16") for name in units)
    return Tiles(device, torch.bfloat16 if fast else torch.float32)


def import_faiss() -> ModuleType:
    """Import faiss, or say which extra brings it.

    Raises:
        ValueError: there is none.
    """
    try:
        import faiss

        faiss.knn  # noqa: B018 - where removing one of two faiss left an empty folder, it has none
    except (ImportError, AttributeError) as error:
        raise ValueError(
            "expected faiss, which was asked for, got none: install askance[cpu], or"
            " askance[gpu] beside a CUDA GPU (one of them, never both), or use tiles"
        ) from error
    return faiss


def margin(first: Block, second: Block) -> Float64[np.ndarray, " m"]:
    """Bound how far a product of operands, shifted, may lie from the cosine, by row of the first.

    For operands x', y' of x, y: |xy - x'y'| <= |x - x'| |y| + |x'| |y - y'|; and a sum of k
    products in float32, in any order, rounding or truncating, is off by k 2^-23 times the sum of
    their sizes. Terms are known to 2^-21 each.
    """
    length, error, term = (part.max() for part in (second.length, second.error, second.term))
    size = first.length * length + first.term + term
    summing = (first.operand.shape[1] + 16) * 2.0**-23 * size
    return first.error * length + first.length * error + summing + 2.0**-20


def _reaching(
    tile: Tensor, axis: int, bar: Float64[np.ndarray, " m"], margin: Float64[np.ndarray, " m"]
) -> Pairs:
    """Name the places that may reach the bar of their row (axis 1) or column (0), and its best.

    A tile's values are cosines moved by at most the margin, then rounded. Rounding keeps the
    order: what reaches a floor before reaches the rounded floor after.
    """
    size = GROUP if tile.shape[axis] % GROUP == 0 else tile.shape[axis]
    groups = tile.unflatten(axis, (-1, size))
    tops = maxima(groups, axis + 1)
    if axis == 0:
        groups, tops = groups.permute(2, 0, 1), tops.T
    best = tops.amax(1).double().cpu().numpy()
    best = best - torch.finfo(tile.dtype).eps / 2 * abs(best) - margin
    floor = torch.from_numpy(np.maximum(bar, best) - margin).to(tile)
    row, group = places(tops >= floor[:, None])
    place, within = places(groups[row, group] >= floor[row, None])
    return row[place], group[place] * size + within


def maxima(tile: Tensor, axis: int) -> Tensor:
    """Return the largest values along an axis.

    As whole numbers floats keep their order unless both are negative, and the processor's
    comparison of whole numbers is several times as fast.
    """
    whole = tile.view(AS_WHOLE[tile.dtype]).amax(axis)
    return tile.amax(axis) if whole.amin() < 0 else whole.view(tile.dtype)


def places(mask: Tensor) -> Pairs:
    """Return the rows and columns of what is true, of which there is little."""
    if mask.is_cuda:
        row, column = mask.nonzero().T.cpu().numpy()
        return row, column
    row, column = np.divmod(np.flatnonzero(mask.numpy()), mask.shape[1])
    return row, column
