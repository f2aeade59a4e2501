"""extract: shards and a frozen backbone to a feature store."""

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from askance.features.recipe import Recipe
from askance.pipeline.artifacts import Place, place
from askance.pipeline.command import TooManyRefusedError, command
from askance.pipeline.progress import progress
from askance.pipeline.runs import Run
from askance.stages import options as o

if TYPE_CHECKING:
    from askance.features.blocks import Task
    from askance.features.embed import Embedded, Embedder
    from askance.features.writer import StoreWriter


def run(
    data: Annotated[Path, typer.Argument(help="folder of a prepared set")],
    out: Annotated[
        Place, typer.Argument(parser=place, help="the store: stores/<set>.zarr, or a URL")
    ],
    *,
    views: o.Views,
    backbone: o.BackboneName,
    weights: o.Weights = "pretrained",
    size: o.Size = 0,
    preprocess: o.Preprocess = "own",
    precision: o.OfProducts = "float32",
    compile: o.Compile = False,  # noqa: A002
    dtype: o.OfEmbeddings = "float16",
    classifier: o.OwnClassifier = "none",
    logits: o.Logits = "none",
    seed: o.Seed = 0,
    batch: o.Batch = 32,
    block: o.BlockRows = 1024,
    threads: o.Threads = 2,
    refusals: o.Refusals = 0.0,
    retry: o.Retry = False,
    device: o.Device = "auto",
    scheduler: o.Scheduler = "none",
    workers: o.Workers = 1,
) -> None:
    """Embed every view of every image of a set; go on where an earlier run stopped."""
    from askance.features.embed import Embedder
    from askance.features.index import read_index
    from askance.features.writer import StoreWriter

    if scheduler == "none" and workers > 1:
        raise ValueError(f"expected a scheduler for {workers} workers, got none: say local")
    recipe = Recipe(
        tuple(views), backbone, weights, size, preprocess, precision, compile, dtype, classifier,
        logits, seed, batch, block, threads, device,
    )  # fmt: skip
    index = read_index(data)
    embedder = Embedder.load(recipe)
    with StoreWriter(out, embedder.layout(index), index) as writer:
        print(writer.message, flush=True)
        rows, tasks = _work(writer, recipe.images, retry)
        this, done = Run("extract"), 0
        try:
            with (
                _embedding(embedder, tasks, scheduler, workers if rows else 0) as embedded,
                progress(f"extract {out.name}", rows * len(views), "img") as advance,
            ):
                for count in _written(writer, embedded):
                    done += count
                    advance(count * len(views))
        finally:
            if done:
                about = {"scheduler": scheduler, "workers": workers, "device": device}
                about |= {"fingerprint": writer.fingerprint, "begun": rows == len(index)}
                this.log(out, done * len(views), "pictures", **about)
        refused = writer.finish()
    _judge(refused.slice(0, 1).to_pylist(), len(refused), len(index), refusals, out)
    print(f"{out}: {len(index)} images x {len(views)} views, {len(refused)} refused")


def _work(writer: "StoreWriter", batch: int, retry: bool) -> tuple[int, "Iterator[Task]"]:
    """Return the number of rows to embed, and the tasks: blocks not done, and refused rows."""
    from askance.features.blocks import batches_of, places_of, task

    missing, index = writer.missing(), writer.index
    undone = set(missing)
    done = (block for block in writer.blocks if retry and block not in undone)
    found = ((block, list(writer.refused(block))) for block in done)
    again = [(block, rows) for block, rows in found if rows]

    def tasks() -> "Iterator[Task]":
        yield from (batches_of(index, block, rows, batch) for block, rows in again)
        yield from (task(index, block) for block in missing)

    count = sum(len(block.rows) for block in missing)
    count += sum(len(places_of(block, rows, batch)) for block, rows in again)
    return count, tasks()


@contextmanager
def _embedding(
    embedder: "Embedder", tasks: "Iterable[Task]", scheduler: str, workers: int
) -> "Iterator[Iterator[Embedded]]":
    """Yield what becomes of the tasks: in this process, or on `workers` workers."""
    if scheduler == "none" or not workers:
        yield embedder.embed(tasks)
        return
    from askance.features.cluster import cluster, embed_on

    with _draining() as stopped, cluster(scheduler, workers, embedder) as (client, plugin):
        yield embed_on(client, plugin, tasks, stopped)


@contextmanager
def _draining() -> Iterator[Callable[[], bool]]:
    """Take the first Ctrl-C as a wish to finish the blocks at work, the second as an order."""
    heard: list[int] = []

    def hear(number: int, _: object) -> None:
        if heard:
            raise KeyboardInterrupt
        heard.append(number)
        told = b"interrupted: finishing the blocks at work; again to stop at once\n"
        os.write(sys.stderr.fileno(), told)  # a handler may interrupt a print

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield lambda: bool(heard)
    finally:
        signal.signal(signal.SIGINT, before)
    if heard:
        raise KeyboardInterrupt


def _written(writer: "StoreWriter", embedded: "Iterator[Embedded]") -> Iterator[int]:
    """Write what comes, in a thread, and yield the rows of each part that is written."""
    from askance.pipeline.lanes import ahead

    def put(part: "Embedded") -> int:
        if writer.done(part.block):
            writer.mend(part.block, part.rows, part.arrays, part.refused)
        else:
            writer.write(part.block, part.arrays, part.refused)
        return len(part.rows)

    with ThreadPoolExecutor(1) as pool:
        yield from ahead(pool, put, embedded, 2)


def _judge(
    first: list[dict[str, Any]], refused: int, rows: int, refusals: float, out: Place
) -> None:
    if refused <= refusals * rows:
        return
    raise TooManyRefusedError(
        f"expected at most {refusals:.2%} of {rows} images refused, got {refused}; the first:"
        f" {first[0]['key']} of {first[0]['shard']} ({first[0]['reason']}); all are in"
        f" {out}/status/refused.parquet: extract with --retry when lost shards are back,"
        " prepare the set again when images are mended, or raise extract.refusals"
    )


main = command(run)

if __name__ == "__main__":
    typer.run(main)
