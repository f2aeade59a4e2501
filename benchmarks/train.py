"""Training a head from a store, beside the machine's limit and the original program's way.

The contenders of a table take turns, and each reports the median of its rounds: rows per CPU-second
of all threads and workers with one compute thread, and rows per second of wall time with as many
threads as cores. Read the ratios; neighbours on the machine disturb wall time most. Embeddings,
losses and weights are random: they don't change the speed.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import chain, islice, repeat
from pathlib import Path

import torch
from torch import Tensor
from torch.func import functional_call, stack_module_state, vmap
from torch.nn.functional import linear
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

from askance.heads.catalogue import find
from askance.heads.fit import Training
from askance.heads.head import Batch
from askance.heads.ranking import ranking_loss
from askance.pipeline.provenance import machine
from benchmarks import extract
from benchmarks.rates import CORES, Way, measured, rates
from benchmarks.stores import VIEWS, WIDTH, Stores

IMAGES, DIM, CLASSES = 98_304, 768, 21_843
BATCH, ROWS, RATE, SEEDS = 2_048, 32_768, 2.8e-3, 5  # rows: of a contender's turn
WHOLE = f"+ one batch of {BATCH:,}"  # the last change to the original: the whole loop of ours
PAPER = 460 * 200_000  # rows of its training
NAME, PHOTOS = "vit_base_patch16_224", 64
DEFAULT = 4_618, 384, 926  # images, dim and classes of the default graph's upstream store
FIVE_HEADS = "ranking", "squared", "entropy", "maxprob", "norm"


def loop(made: Stores, batches: Iterator[Batch], dtype: torch.dtype, seeds: int = 1) -> Way:
    """Return the whole loop: rows from somewhere, and a step on each batch."""
    bfloat16 = dtype == torch.bfloat16
    training = Training(["ranking"], range(seeds), made.setup, lambda _: RATE, bfloat16=bfloat16)

    def some() -> int:
        done = 0
        while done < ROWS:
            rows = next(batches)
            training.step(rows, None, ())
            done += len(rows.loss)
        training.objectives()
        return done

    return some


def ours(made: Stores, batch: int, dtype: torch.dtype, seeds: int = 1) -> Way:
    """Return the loop on rows out of the store."""
    return loop(made, made.rows(batch, dtype), dtype, seeds)


def resident(made: Stores, dtype: torch.dtype) -> Iterator[Batch]:
    """Yield batches as torch's own TensorDataset does, all rows in memory."""
    embedding = torch.from_numpy(made.features.read("embedding")).flatten(0, 1).to(dtype)
    loss = torch.from_numpy(made.losses.read("loss")).flatten()
    column = torch.from_numpy(made.features.labels).long().repeat_interleave(VIEWS)
    rows = TensorDataset(embedding, loss, column)
    sampler = BatchSampler(RandomSampler(rows), BATCH, drop_last=True)
    for batch in chain.from_iterable(repeat(DataLoader(rows, batch_size=None, sampler=sampler))):
        yield Batch(*batch)


def products(batch: int, dtype: torch.dtype) -> Way:
    """Return the five large matrix products of a step alone, on rows that are there already."""
    count = ROWS // batch
    x = torch.randn(4, batch, DIM).to(dtype)
    hidden, gradient = (torch.randn(batch, WIDTH).to(dtype) for _ in range(2))
    first, second = (torch.randn(WIDTH, side).to(dtype) for side in (DIM, WIDTH))

    def some() -> int:
        for number in range(count):
            rows = x[number % len(x)]
            linear(rows, first), linear(hidden, second)
            gradient.T @ rows, gradient.T @ hidden, gradient @ second
        return ROWS

    return some


def against_limit(made: Stores) -> None:
    """Print the whole loop beside its products alone."""
    print(f"{'k rows/s':24}CPU: loop  products  share      wall: loop  products  share")
    for dtype in (torch.bfloat16, torch.float32):
        for batch in (256, BATCH, 8_192):
            ways = {"loop": ours(made, batch, dtype), "products": products(batch, dtype)}
            parts = [
                f"{mine / 1e3:10.1f}{top / 1e3:10.1f}{mine / top:7.2f}"
                for mine, top in zip(*rates(ways).values(), strict=True)
            ]
            print(f"{str(dtype)[6:]:9}batch {batch:<8,}{'         '.join(parts)}", flush=True)


def against_original(made: Stores, folder: Path) -> None:
    """Print the original's way, and what each change on the way to ours brings."""
    try:
        from benchmarks import original
    except ImportError as error:
        print(f"{error.name} is not installed: left out (pip install -e '.[bench]')")
        return
    original.write(folder / "rows.h5", made.features, made.losses)
    for dtype in (torch.bfloat16, torch.float32):
        blocks = ((rows.embedding, rows.loss) for rows in made.rows(original.BATCH, dtype))
        feeds = {
            "stand-in": (original.by_row(folder / "rows.h5", "label"), original.recomputed),
            "+ cached losses": (original.by_row(folder / "rows.h5", "loss"), original.cached),
            "+ reading by blocks": (blocks, original.cached),
        }
        ways = {
            name: original.loop(made.setup, *feed, bfloat16=dtype == torch.bfloat16)
            for name, feed in feeds.items()
        }
        ways[WHOLE] = ours(made, BATCH, dtype)
        ways["TensorDataset instead"] = loop(made, resident(made, dtype), dtype)
        found = rates(ways)
        first = found["stand-in"]
        print(f"{str(dtype)[6:] + ', rows/s':24}      CPU                  wall")
        for name, rate in found.items():
            cpu, wall = (mine / theirs for mine, theirs in zip(rate, first, strict=True))
            print(f"{name:24}{rate.cpu:9,.0f} x{cpu:<8.1f}{rate.wall:9,.0f} x{wall:.1f}")
        theirs, mine = (PAPER / rate.wall / 60 for rate in (first, found[WHOLE]))
        print(f"{PAPER:,} rows at these wall rates: {theirs:,.0f} and {mine:.1f} min", flush=True)


def stacked(made: Stores, batch: int, dtype: torch.dtype) -> Way:
    """Return the loop of several seeds, their weights stacked into batched products."""
    heads = [find("ranking")(made.setup) for _ in range(SEEDS)]
    weights, _ = stack_module_state(heads)
    adamw = torch.optim.AdamW(weights.values(), lr=RATE, fused=True)
    batches = made.rows(batch, dtype)

    def objective(weights: dict[str, Tensor], embedding: Tensor, loss: Tensor) -> Tensor:
        return ranking_loss(functional_call(heads[0], weights, (embedding,)), loss)

    def some() -> int:
        for rows in islice(batches, ROWS // batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
                each = vmap(objective, (0, None, None))(weights, rows.embedding, rows.loss)
            each.sum().backward()
            adamw.step()
            adamw.zero_grad()
        return ROWS

    return some


def seeds(made: Stores) -> None:
    """Print the time of several seeds on the same batches over that of one."""
    print(f"bfloat16, {SEEDS} seeds: time over that of 1 (k rows/s)")
    for batch in (256, BATCH):
        ways = {
            "one": ours(made, batch, torch.bfloat16),
            "in turn": ours(made, batch, torch.bfloat16, SEEDS),
            "stacked (vmap)": stacked(made, batch, torch.bfloat16),
        }
        found = rates(ways)
        one = found.pop("one")
        for name, rate in found.items():
            cpu, wall = (
                f"x{first / mine:.2f} ({first / 1e3:.1f}, {mine / 1e3:.1f})"
                for first, mine in zip(one, rate, strict=True)
            )
            print(f"batch {batch:<7,}{name:16}CPU {cpu:24}wall {wall}", flush=True)


def stage(folder: Path) -> None:
    """Print the seconds of whole runs of the stage with its defaults."""
    made = Stores.written(folder, *DEFAULT)

    def run(heads: tuple[str, ...], seeds: int, *options: str) -> Way:
        places = [made.features.path, made.losses.path, folder / "models", folder / "curves"]
        chosen = [option for name in heads for option in ("--heads", name)]
        chosen += [option for seed in range(seeds) for option in ("--seeds", str(seed))]
        command = [sys.executable, "-m", "askance.stages.train", *map(str, places), *chosen]

        def whole() -> int:
            subprocess.run([*command, *options], check=True, capture_output=True)
            return 1

        return whole

    ways = {"ranking, 1 seed, 1 step": run(("ranking",), 1, "--steps", "1")}
    for name, heads in (("ranking", ("ranking",)), ("five heads", FIVE_HEADS)):
        ways |= {f"{name}, {count} seed(s)": run(heads, count) for count in (1, SEEDS)}
    print(f"whole runs of train: {DEFAULT[0]:,} images x 2 x {DEFAULT[1]}, 600 steps of 256")
    found = measured(ways)
    for name, rate in found.items():
        first = found[name.replace(f"{SEEDS} seed", "1 seed")]
        cpu, wall = (
            f"{1 / mine:.1f} (x{base / mine:.2f})" for base, mine in zip(first, rate, strict=True)
        )
        print(f"{name:26}CPU-s {cpu:16}s {wall}", flush=True)


def headline(made: Stores, folder: Path) -> None:
    """Print the cost of rows that are computed from photographs, and of cached ones."""
    torch.set_num_threads(1)
    index, one = extract.photographs(folder, PHOTOS), extract.embedder(NAME, folder)
    share = extract.flops(one) / extract.gemm_limit()

    def photos(way: Callable[[], float]) -> Way:
        return lambda: (way(), PHOTOS)[1]

    ways = {name: photos(way) for name, way in extract.contenders(one, index, folder).items()}
    del ways["end to end"]  # extract's own benchmark: writing is 0.1 % of it
    found = measured(ways | {"cached loop": ours(made, BATCH, torch.bfloat16)})
    cost = {name: 10_000 / rate.cpu for name, rate in found.items()}
    limit = found["forward"].cpu * share
    print(f"{NAME}, bfloat16, one thread; forward at {limit:.2f} of a product's speed")
    for name, spent in cost.items():
        print(f"{name:18}{found[name].cpu:12,.1f} rows/CPU-s {spent:12.3f} CPU-s per 10,000")
    cached = cost.pop("cached loop")
    once = sum(cost.values())
    print(
        f"live over cached: {once + cached:,.1f} / {cached:.3f} = x{(once + cached) / cached:,.0f}"
    )
    for runs in (1, 10, 180):
        live, kept = runs * (once + cached), once + runs * cached
        print(f"{runs:4} trainings: live {live:9,.0f}, cached {kept:6,.0f}: x{live / kept:.2f}")


def main() -> None:
    """Print all tables."""
    print(f"{machine()}, load {os.getloadavg()[0]:.1f}; torch {torch.__version__}, {CORES} cores")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        made = Stores.written(folder, IMAGES, DIM, CLASSES)
        against_limit(made)
        against_original(made, folder)
        seeds(made)
        headline(made, folder)
        stage(folder / "default")
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
