"""Shuffled training batches per second out of a feature store, beside other ways to feed a head.

Every contender yields batches of 2,048 shuffled rows of 768 numbers in bfloat16, with loss and
column. The others have them stored in bfloat16, which is their best: half the bytes of what is
usual, and nothing to convert (Arrow has none: float16). One compute thread; the contenders take
turns and each reports the median of its rounds; read the ratios.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from askance.features.batches import Batches
from askance.features.store import FeatureStore
from askance.pipeline.provenance import machine
from benchmarks.rates import ROUNDS, Rates, Way, measured
from benchmarks.stores import BLOCK, VIEWS, Stores

IMAGES, DIM, BATCH, CLASSES = 98_304, 768, 2_048, 100
ROWS = IMAGES * VIEWS
WHOLE, WINDOWED = 8 * 2**30, 192 * 2**20  # bytes of memory allowed
EPOCHS = 12  # in a round: a training takes memory once for all of them


def batches(features: FeatureStore, losses: FeatureStore, memory: int) -> Batches:
    """Return random rows of all images, in bfloat16."""
    none = np.zeros(IMAGES, bool)
    return Batches(
        features, losses, batch=BATCH, rows=True, pairs=False, held_out=none, seed=0,
        dtype=torch.bfloat16, memory=memory,
    )  # fmt: skip


def counted(feed: Callable[[], Iterable[object]], epochs: int = 1) -> Way:
    """Return a way to take all batches of a feed."""

    def way() -> int:
        deque(feed(), maxlen=0)
        return epochs * ROWS

    return way


def ours(made: Batches, epochs: int) -> Way:
    return counted(lambda: made.steps(0, epochs * ROWS // BATCH), epochs)


def peers(folder: Path, features: FeatureStore, losses: FeatureStore) -> dict[str, Way]:
    """Return the others that are installed."""
    embedding = torch.from_numpy(features.read("embedding")).flatten(0, 1)
    rows = {
        "embedding": embedding.bfloat16(),
        "loss": torch.from_numpy(losses.read("loss")).flatten(),
        "column": torch.from_numpy(features.labels).long().repeat_interleave(VIEWS),
    }
    dataset = TensorDataset(*rows.values())

    def loader() -> DataLoader[tuple[torch.Tensor, ...]]:
        sampler = BatchSampler(RandomSampler(dataset), BATCH, drop_last=True)
        return DataLoader(dataset, batch_size=None, sampler=sampler)

    found = {"TensorDataset + batch sampler": counted(loader)}
    for add in (_tensordict, _datasets):
        try:
            found |= add(folder, rows | {"half": embedding})
        except ImportError as error:
            print(f"{error.name} is not installed, so left out: pip install -e '.[bench]'")
    return found


def _tensordict(folder: Path, rows: dict[str, torch.Tensor]) -> dict[str, Way]:
    from tensordict import TensorDict

    def mapped(name: str) -> TensorDict:
        kept = {"embedding": rows[name], "loss": rows["loss"], "column": rows["column"]}
        return TensorDict(kept, batch_size=[ROWS]).memmap(folder / name)

    def feed(saved: TensorDict) -> Iterator[object]:
        for order in torch.randperm(ROWS).split(BATCH):
            batch = saved[order]
            # By way of float32, which is several times faster than at once.
            yield batch["embedding"].float().bfloat16() if saved is half else batch

    whole, half = mapped("embedding"), mapped("half")
    return {
        "TensorDict memory map": counted(lambda: feed(whole)),
        "TensorDict, float16 as ours": counted(lambda: feed(half)),
    }


def _datasets(folder: Path, rows: dict[str, torch.Tensor]) -> dict[str, Way]:
    import datasets

    datasets.disable_progress_bars()
    flat = pa.array(rows["half"].flatten().numpy())
    columns = {"embedding": pa.FixedSizeListArray.from_arrays(flat, DIM)}
    columns |= {name: pa.array(rows[name].numpy()) for name in ("loss", "column")}
    datasets.Dataset(pa.table(columns)).save_to_disk(folder / "arrow")
    saved = datasets.load_from_disk(folder / "arrow")

    def feed(shuffled: Iterable[dict[str, torch.Tensor]]) -> Iterator[object]:
        for batch in shuffled:
            yield batch | {"embedding": batch["embedding"].float().bfloat16()}

    def mapped() -> Iterator[object]:
        return feed(saved.shuffle().with_format("torch").iter(BATCH))

    def streamed() -> Iterator[object]:
        parts = saved.to_iterable_dataset(num_shards=ROWS // 8192)
        return feed(parts.shuffle(buffer_size=8192).with_format("torch").iter(BATCH))

    return {"datasets, map": counted(mapped), "datasets, iterable": counted(streamed)}


def hot(stores: Stores, folder: Path) -> None:
    """Print rates out of memory and the page cache, and the ratios to the best of the others."""
    features, losses, _ = stores
    mine = {
        "ours, all in memory": ours(batches(features, losses, WHOLE), EPOCHS),
        "ours, windows": ours(batches(features, losses, WINDOWED), EPOCHS),
    }
    others = peers(folder, features, losses)
    found = measured(mine | others)
    best = Rates(*(max(found[name][place] for name in others) for place in (0, 1)))
    print(f"{'hot':30}{'rows per CPU-s':>15}{'per s':>12}    of the best other")
    for name, (cpu, wall) in found.items():
        print(f"{name:30}{cpu:15,.0f}{wall:12,.0f}{cpu / best.cpu:11.2f}x{wall / best.wall:7.2f}x")


def evict(folder: Path) -> None:
    """Take the files of a folder out of the page cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cold(stores: Stores) -> None:
    """Print rates from the disk, and the shares of reading the same files one after another."""
    features, losses, _ = stores
    path, buffer = Path(str(features.path)), bytearray(1 << 22)

    def plain() -> Iterator[object]:
        for file in sorted((path / "embedding" / "c").rglob("0")):
            if file.is_file():
                with file.open("rb", buffering=0) as opened:
                    while opened.readinto(buffer):
                        yield

    def first_epoch(memory: int) -> Way:
        return lambda: ours(batches(features, losses, memory), 1)()

    ways = {"plain reads": counted(plain), "ours, all in memory": first_epoch(WHOLE)}
    ways |= {"ours, windows": first_epoch(WINDOWED)}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            evict(path)
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    wall = {name: statistics.median(taken) for name, taken in seconds.items()}
    print(f"{'cold, the first epoch':30}{'rows per s':>15}{'GB/s':>12}    of plain reads")
    for name, taken in wall.items():
        rate, share = ROWS / taken, wall["plain reads"] / taken
        print(f"{name:30}{rate:15,.0f}{rate * 2 * DIM / 1e9:12.2f}{share:11.2f}x")


MEMORY = """
import sys
from pathlib import Path
from askance.features.store import FeatureStore
from benchmarks.feed import batches, ours
def peak():  # not getrusage: a child inherits the parent's peak
    return next(int(x.split()[1]) for x in open("/proc/self/status") if x.startswith("VmHWM"))
made = batches(*(FeatureStore.open(Path(path)) for path in sys.argv[2:]), int(sys.argv[1]))
before = peak()
ours(made, 3)()
print(made.window, made.ahead, peak() - before)
"""


def memory(stores: Stores) -> None:
    """Print by how much three epochs raise the peak of a process."""
    for allowed in (WINDOWED // 2, WINDOWED, WHOLE):
        paths = [str(store.path) for store in (stores.features, stores.losses)]
        command = [sys.executable, "-c", MEMORY, str(allowed), *paths]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        window, ahead, grown = map(int, done.stdout.split())
        print(
            f"memory: {allowed >> 20:,} MiB allowed, peak raised by {grown >> 10} MiB; windows of"
            f" {window} blocks, {ahead} ahead"
        )


def main() -> None:
    """Print rates hot and cold, and memory."""
    torch.set_num_threads(1)
    print(
        f"{machine()}, load {os.getloadavg()[0]:.1f}; torch {torch.__version__}, one thread;"
        f" {ROWS:,} rows of {DIM} in {IMAGES // BLOCK} blocks, batches of {BATCH:,};"
        f" {WINDOWED >> 20} MiB for windows"
    )
    with tempfile.TemporaryDirectory() as name:
        stores = Stores.written(Path(name), IMAGES, DIM, CLASSES)
        cold(stores)
        hot(stores, Path(name))  # last, as the page cache is slower for what came from the disk
        memory(stores)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
