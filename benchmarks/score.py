"""`askance score` end to end against the extract stage on the same pictures; and its peak memory.

The model is that of the run in the current folder. All contenders load it, embed the same JPEGs
with it, and write; they take turns in one process, with one compute and one decoding thread, and
each reports the median of its rounds. Read the ratios.
"""

import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

import askance
from askance.features.backbone import load_backbone, timm
from askance.features.reader import image
from askance.features.shards import write_shards
from askance.features.views import View
from askance.heads.checkpoint import SavedHead, save
from askance.heads.head import Setup
from askance.heads.norm import Norm
from askance.pipeline.artifacts import remove
from askance.pipeline.provenance import machine
from askance.score import run as score
from askance.stages.extract import run as extract
from benchmarks.extract import photographs
from benchmarks.rates import Way, measured

ROUNDS, PHOTOS, BATCH = 3, 512, 32
SETTINGS: dict[str, Any] = {"batch": BATCH, "threads": 1, "device": "cpu"}


def contenders(folder: Path) -> dict[str, Way]:
    """Return the ways to embed the photographs under a folder."""
    index = photographs(folder, PHOTOS)
    (folder / "files").mkdir()
    for row, key in enumerate(index.keys):
        (folder / "files" / f"{key}.jpg").write_bytes(image(index, row))
    backbone = askance.load(".").saved.backbone
    about = {"size": backbone["preprocessing"]["size"], "precision": backbone["precision"]}

    def extracted() -> int:
        remove(folder / "a.zarr")
        views = [View.PLAIN]
        extract(folder / "set", folder / "a.zarr", views=views, backbone=backbone["backbone"],
                **about, **SETTINGS)  # fmt: skip
        return PHOTOS

    def scored(place: Path, **more: Any) -> Way:
        def way() -> int:
            remove(folder / "a.parquet")
            score([str(place)], out=folder / "a.parquet", **more, **SETTINGS)
            return PHOTOS

        return way

    return {
        "extract": extracted,
        "score, tar": scored(folder / "shards"),
        "score, files": scored(folder / "files"),
        "score, files, embeddings and sheet": scored(
            folder / "files", embedding=True, html=folder / "a.html"
        ),
    }


def speed(folder: Path) -> None:
    """Print images per CPU-second and per second, and their ratio to extract's."""
    found = measured(contenders(folder), ROUNDS)
    print(f"{'':36} img per CPU-s  of extract  img per s  of extract")
    extracted = found["extract"]
    for name, rate in found.items():
        print(
            f"{name:36}{rate.cpu:14.1f}{rate.cpu / extracted.cpu:12.2f}{rate.wall:11.1f}"
            f"{rate.wall / extracted.wall:12.2f}",
            flush=True,
        )


def tiny_model(folder: Path) -> tuple[Path, Path]:
    """Write an untrained head for a tiny backbone, and the weights of that."""
    weights, head = folder / "tiny.safetensors", folder / "norm-0.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit", num_classes=3, img_size=32).state_dict(), weights)
    backbone = load_backbone("test_vit", str(weights), 32, "own", "float32")
    about = {"preprocessing": asdict(backbone.preprocessing), "precision": "float32"}
    about |= {"backbone": "test_vit", "weights": backbone.weights_hash()}
    setup = Setup(backbone.width, 1, 1, torch.zeros(3, backbone.width), torch.zeros(3))
    save(head, SavedHead("norm", 0, Norm(setup), np.linspace(0, 1, 1001), setup.sizes, about, {}))
    return head, weights


MEMORY = """
import sys
from pathlib import Path
from askance.score import run
place, out, model, weights = sys.argv[1:]
run([place], out=Path(out), model=model, weights=weights, html=Path(out).with_suffix(".html"),
    device="cpu", batch=64)
# Not getrusage: a child inherits the parent's peak.
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def memory(folder: Path) -> None:
    """Print the peak memory of whole runs, with a sheet, over ever more small images."""
    model = tiny_model(folder)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "small.png")
    picture = (folder / "small.png").read_bytes()
    for count in (1_000, 20_000, 100_000):
        tars, files = folder / f"tars-{count}", folder / f"files-{count}"
        write_shards(tars, "x", ({"__key__": f"{n:07}", "png": picture} for n in range(count)))
        files.mkdir()
        for number in range(count):
            (files / f"{number:07}.png").write_bytes(picture)
        for place in (tars, files):
            arguments = [place, folder / f"{place.name}.parquet", *model]
            done = subprocess.run(
                [sys.executable, "-c", MEMORY, *map(str, arguments)],
                capture_output=True, text=True, check=True,
            )  # fmt: skip
            peak = int(done.stdout.split()[-1]) >> 10
            print(f"{count:8,} images in {place.name}: peak {peak} MiB", flush=True)


def main() -> None:
    """Print speed and memory."""
    torch.set_num_threads(1)
    print(f"{machine()}; torch {torch.__version__}, one thread, batch {BATCH}, {PHOTOS} JPEGs")
    with tempfile.TemporaryDirectory() as name:
        speed(Path(name))
        memory(Path(name))


if __name__ == "__main__":
    main()
