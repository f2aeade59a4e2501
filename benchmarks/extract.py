"""Images per CPU-second of extraction end to end, against its parts alone; and its peak memory.

One compute thread and one decoding thread; the contenders take turns in one process and each
reports the median of its rounds. CPU-seconds of all threads count, so that a neighbour on the
machine disturbs little; read the ratios. Weights are random: they don't change the speed.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from askance.features.backbone import timm
from askance.features.blocks import plan, task
from askance.features.embed import Embedder
from askance.features.index import Index, read_index
from askance.features.reader import images
from askance.features.recipe import Recipe
from askance.features.shards import write_shards
from askance.features.views import View, decode, render
from askance.features.writer import StoreWriter
from askance.pipeline.artifacts import remove
from askance.pipeline.provenance import machine
from askance.stages.prepare import run as prepare

ROUNDS, PHOTOS = 3, 384
BATCH = 8  # small batches stay in the cache: x1.1 over 32
VITS = [f"vit_{size}_patch16_224" for size in ("tiny", "small", "base")]


def photographs(folder: Path, count: int) -> Index:
    """Prepare a set of JPEG photographs of 500 x 375 pixels, cut out of the two of scikit-learn."""
    from sklearn.datasets import load_sample_images

    random, sources = np.random.default_rng(0), load_sample_images().images

    def samples() -> Iterator[dict[str, str | bytes]]:
        for number in range(count):
            left, top = random.integers(640 - 500), random.integers(427 - 375)
            pixels = sources[number % 2][top : top + 375, left : left + 500]
            path = folder / "photo.jpg"
            Image.fromarray(pixels).save(path, quality=92)
            yield {"__key__": f"{number:06}", "jpg": path.read_bytes(), "cls": b"0"}

    write_shards(folder / "shards", "photos", samples())
    prepare(folder / "set", [f"shards path={folder}/shards/*.tar"])
    return read_index(folder / "set")


def embedder(name: str, folder: Path) -> Embedder:
    """Build a backbone with random weights, in bfloat16."""
    weights = folder / f"{name}.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model(name, num_classes=10).state_dict(), weights)
    recipe = Recipe(
        views=(View.AUGMENT,), backbone=name, weights=str(weights), precision="bfloat16",
        batch=BATCH, block=64, threads=1, device="cpu",
    )  # fmt: skip
    return Embedder.load(recipe)


def contenders(one: Embedder, index: Index, folder: Path) -> dict[str, Callable[[], float]]:
    """Return ways to spend the CPU on the same images; each returns the seconds spent writing."""
    tasks = [task(index, block) for block in plan(len(index), one.recipe.block)]
    size, views = one.backbone.preprocessing, one.recipe.views
    pixels = torch.randint(0, 256, (BATCH, 3, size.size, size.size), dtype=torch.uint8)

    def decoded() -> float:
        for key, content in images(t.samples for t in tasks):
            assert isinstance(content, bytes)
            render(decode(content), views, size, 0, key)
        return 0

    def forward() -> float:
        for _ in range(len(index) // BATCH):
            one.backbone(pixels)
        return 0

    def extracted() -> float:
        out, spent = folder / "out.zarr", 0.0
        remove(out)
        with StoreWriter(out, one.layout(index), index) as writer:
            for part in one.embed(iter(tasks)):
                start = time.process_time()
                writer.write(part.block, part.arrays, part.refused)
                spent += time.process_time() - start
            writer.finish()
        return spent

    return {"decode + augment": decoded, "forward": forward, "end to end": extracted}


def measured(ways: dict[str, Callable[[], float]], count: int) -> dict[str, float]:
    """Return images per CPU-second of each way, and the share of the last spent on writing."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    writing = []
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.process_time()
            wrote = way()
            seconds[name].append(time.process_time() - start)
        writing.append(wrote / seconds[name][-1])
    rates = {name: count / statistics.median(spent) for name, spent in seconds.items()}
    return rates | {"writing": statistics.median(writing)}


def gemm_limit() -> float:
    """Return bfloat16 FLOPs per CPU-second of a large square matrix product, one thread."""
    side, best = 2048, 0.0
    a = torch.randn(side, side).bfloat16()
    for _ in range(5):
        start = time.process_time()
        a @ a
        best = max(best, 2 * side**3 / (time.process_time() - start))
    return best


def flops(one: Embedder) -> int:
    """Count the FLOPs of one image's forward pass."""
    side = one.backbone.preprocessing.size
    with FlopCounterMode(display=False) as counter:
        one.backbone(torch.zeros(1, 3, side, side, dtype=torch.uint8))
    return counter.get_total_flops()


def speed(folder: Path) -> None:
    """Print the rates and their ratios for each backbone."""
    index = photographs(folder, PHOTOS)
    print(
        f"{'img per CPU-s':24} decode forward  end-to-end   of min  of both  forward/GEMM  writing"
    )
    for name in ["tf_efficientnet_lite0", *VITS]:
        one, limit = embedder(name, folder), gemm_limit()
        one.backbone(torch.zeros(BATCH, 3, 224, 224, dtype=torch.uint8))  # warm
        side = one.backbone.preprocessing.size
        rate = measured(contenders(one, index, folder), len(index))
        d, f, e = rate["decode + augment"], rate["forward"], rate["end to end"]
        share = f * flops(one) / limit
        print(
            f"{name:24}{d:7.1f}{f:8.1f}{e:12.1f}{e / min(d, f):9.2f}{e * (1 / d + 1 / f):9.2f}"
            f"{share:14.2f}{rate['writing']:9.2%}   ({side} px)",
            flush=True,
        )


MEMORY = """
import sys
from pathlib import Path
from askance.stages.extract import run
from askance.features.views import View
data, out, weights = sys.argv[1:]
run(Path(data), Path(out), views=[View.PLAIN], backbone="test_vit", weights=weights, size=32,
    device="cpu", batch=64, block=1024, threads=2)
# Not getrusage: a child inherits the parent's peak.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def memory(folder: Path) -> None:
    """Print the peak memory of whole runs over ever more small images."""
    torch.manual_seed(0)
    weights = folder / "tiny.safetensors"
    save_file(timm.create_model("test_vit", num_classes=3, img_size=32).state_dict(), weights)
    path = folder / "small.png"
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
    picture = path.read_bytes()
    for count in (1_000, 10_000, 100_000):
        place = folder / f"{count}"
        samples = ({"__key__": f"{n:07}", "png": picture, "cls": b"0"} for n in range(count))
        write_shards(place / "shards", "small", samples)
        prepare(place / "set", [f"shards path={place}/shards/*.tar"])
        arguments = [place / "set", place / "out.zarr", weights]
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, *map(str, arguments)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        print(f"{count:8,} rows: peak {int(done.stdout.split()[-1]) >> 10} MiB", flush=True)


def main() -> None:
    """Print speed and memory."""
    torch.set_num_threads(1)
    print(f"{machine()}; torch {torch.__version__}, one thread, bfloat16, batch {BATCH}, one view")
    with tempfile.TemporaryDirectory() as name:
        speed(Path(name))
        memory(Path(name))


if __name__ == "__main__":
    main()
