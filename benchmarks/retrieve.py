"""Rates of the exact neighbour search by engine, beside faiss used plainly: all pairs of rows.

`python -m benchmarks.retrieve --rows 60502` is a test set of the field. Everything runs on one
thread, and counts 2 n n d operations per CPU-second, whatever it saves of them; a GPU, where torch
has one, is timed by the clock. The contenders take turns and each reports the median of its rounds.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import typer
import zarr
from threadpoolctl import threadpool_limits

from askance.eval.engines import Engine, Faiss, Tiles, fastest
from askance.eval.retrieval import Neighbours, Rows, neighbours
from askance.features.store import Slices
from askance.pipeline.provenance import machine

SIDE = 1024  # of the products that show what the processor can do
GPU = "tiles, CUDA"
BLOCK = 1024  # rows of a chunk, as stores have them
NEAR_TIES = 1e-3  # what rows of one group differ by, against their lengths


def flat(embedding: np.ndarray) -> np.ndarray:
    """Search as the published program does, but for dropping the row itself by identity."""
    import faiss

    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    _, row = faiss.knn(unit, unit, 2, metric=faiss.METRIC_INNER_PRODUCT)
    return np.where(row[:, 0] == np.arange(len(row)), row[:, 1], row[:, 0])


def data(rows: int, dim: int) -> dict[str, np.ndarray]:
    """Return random rows, and groups of 32 rows that bfloat16 can hardly tell apart."""
    rng = np.random.default_rng(0)
    random = rng.standard_normal((rows, dim), np.float32)
    group = rng.permutation(np.arange(rows) // 32)
    return {"random": random, "near ties": random[group] + np.float32(NEAR_TIES) * random}


def limit(precision: torch.dtype, dim: int) -> float:
    """Return the most operations per CPU-second that a product of matrices reached."""
    first, second = torch.randn(2, SIDE, dim).to(precision)
    out = torch.empty(SIDE, SIDE, dtype=precision)
    if precision == torch.float32:
        seconds = [timed(lambda: np.matmul(first, second.T, out=out.numpy()))[0] for _ in range(30)]
    else:
        seconds = [timed(lambda: torch.mm(first, second.T, out=out))[0] for _ in range(30)]
    return 2 * SIDE * SIDE * dim / min(seconds)


def timed(
    work: Callable[[], object], clock: Callable[[], float] = time.process_time
) -> tuple[float, object]:
    """Return the seconds of some work, and its result."""
    start = clock()
    result = work()
    return clock() - start, result


def clock_of(way: str) -> Callable[[], float]:
    """Return what a contender is timed by: while a GPU works the processor waits."""
    return time.perf_counter if way == GPU else time.process_time


def memory(work: Callable[[], object]) -> float:
    """Return by how many MB some work raised the resident memory at its peak (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = resident("VmRSS")
    work()
    return resident("VmHWM") - before


def resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1e3


def ways(embedding: np.ndarray, folder: Path) -> dict[str, Callable[[], object]]:
    """Return the contenders: faiss as it is first."""

    def ours(engine: Engine, rows: Rows = embedding) -> Callable[[], Neighbours]:
        return lambda: neighbours(rows, engine=engine)

    embedding.tofile(folder / "rows")
    mapped = np.memmap(folder / "rows", np.float32, "r", shape=embedding.shape)
    chunks = BLOCK, 1, embedding.shape[1]
    rows = embedding[:, None]
    stored = zarr.create_array(folder / "zarr", data=rows, chunks=chunks, compressors=None)
    slices = Slices(stored, 0, np.arange(len(embedding)))
    bfloat16 = Tiles("cpu", torch.bfloat16)
    contenders = {
        "faiss, flat": lambda: flat(embedding),
        "faiss, exact": ours(Faiss()),
        "tiles, float32": ours(Tiles("cpu", torch.float32)),
        "tiles, bfloat16": ours(bfloat16),
        "tiles, bfloat16, from a map": ours(bfloat16, mapped),
        "tiles, bfloat16, from Zarr": ours(bfloat16, slices),
    }
    if torch.cuda.is_available():
        contenders[GPU] = ours(fastest("cuda"))
    return contenders


def compare(name: str, embedding: np.ndarray, rounds: int, limits: dict[str, float]) -> None:
    """Print a line per contender."""
    n, dim = embedding.shape
    with tempfile.TemporaryDirectory() as folder:
        contenders = ways(embedding, Path(folder))
        peaks = {way: memory(work) for way, work in contenders.items()}  # a warm-up, too
        taken = [
            [timed(work, clock_of(way)) for way, work in contenders.items()] for _ in range(rounds)
        ]
    seconds = [statistics.median(spent for spent, _ in turns) for turns in zip(*taken, strict=True)]
    exact = taken[-1][list(contenders).index("tiles, float32")][1]
    for (way, peak), spent, (_, found) in zip(peaks.items(), seconds, taken[-1], strict=True):
        rate = 2 * n * n * dim / spent
        unit = "s" if way == GPU else "CPU-s"
        line = (
            f"{name:10}{way:28}{spent:7.2f} {unit} {rate / 1e9:5.0f} GF/s x{seconds[0] / spent:.2f}"
        )
        if way != GPU:
            share = rate / limits["bfloat16" if "bfloat16" in way else "float32"]
            line += f", {share:.2f} of products"
        row = found.row if isinstance(found, Neighbours) else found
        line += f", {peak:+.0f} MB, {(row != exact.row).sum()} differ"
        if isinstance(found, Neighbours):
            line += f", {found.certified:.1%} certified, {found.scored / n:.1f} scored a row"
        print(line, flush=True)


def main(rows: int = 8192, dim: int = 768, rounds: int = 3) -> None:
    """Print rates, their ratios to plain faiss, and what they rest on."""
    torch.set_num_threads(1)
    with threadpool_limits(1):
        limits = {name: limit(getattr(torch, name), dim) for name in ("float32", "bfloat16")}
        known = ", ".join(f"{name} {rate / 1e9:.0f} GF/s" for name, rate in limits.items())
        print(f"{machine()}, one thread; {rows} rows of {dim}; products reach {known}")
        for name, embedding in data(rows, dim).items():
            compare(name, embedding, rounds, limits)


if __name__ == "__main__":
    typer.run(main)
