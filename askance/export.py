"""The `askance export` command: a model as one file, for programs that have no askance."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from askance.pipeline.command import command
from askance.stages import options as o

if TYPE_CHECKING:
    from askance.agreement import Difference, Pixels
    from askance.model import Model
    from askance.pixels import Preprocess

LEAST, MOST = 3, 320  # pictures of a folder to check with
VARIED, NOISE = 30, 2  # pictures to check with, if no folder is given


def run(
    source: o.ModelSource = ".",
    *,
    onnx: Annotated[Path | None, typer.Option(help="the ONNX file to write")] = None,
    torch: Annotated[
        Path | None, typer.Option(help="the file to write for torch.export.load: .pt2")
    ] = None,
    precision: Annotated[
        Literal["float32", "float16", "int8"],
        typer.Option(help="of the network; int8: of a ViT's matrix products, in ONNX"),
    ] = "float32",
    check: Annotated[
        Path | None,
        typer.Option(help="a folder of pictures to check the file with; some are built in"),
    ] = None,
    head: o.HeadName = "",
    seed: o.HeadSeed = None,
    weights: o.ModelWeights = "",
) -> None:
    """Write a model as one file: pixels to embedding, uncertainty and percentile.

    The file is checked against the model before it takes its name.
    """
    if onnx is None and torch is None:
        raise typer.BadParameter("expected a file to write: --onnx, --torch or both")
    if torch is not None and precision == "int8":
        raise typer.BadParameter("expected --precision float32 or float16 with --torch, got int8")
    from askance.model import load
    from askance.portable import OPSET, check_installed, write_onnx, write_torch

    if onnx is not None:
        check_installed()
    model = load(source, weights, head=head, seed=seed)
    pixels = _built_in(model.preprocess) if check is None else _of_folder(check, model.preprocess)
    print(_about(model, precision), flush=True)
    if onnx is not None:
        _tell(onnx, f"opset {OPSET}", write_onnx(model, onnx, pixels, precision), pixels)
    if torch is not None:
        _tell(torch, "torch.export", write_torch(model, torch, pixels, precision), pixels)


def _of_folder(folder: Path, preprocess: "Preprocess") -> "Pixels":
    """Return the pixels of the pictures in a folder, at any depth; of so many, evenly chosen.

    Raises:
        ValueError: too few, or a file is no picture.
    """
    import torch

    from askance.features.shards import IMAGES

    files = sorted(path for path in folder.rglob("*") if path.suffix[1:].lower() in IMAGES)
    if len(files) < LEAST:
        raise ValueError(
            f"expected {LEAST} pictures or more ({', '.join(sorted(IMAGES))}) in {folder}, got"
            f" {len(files)}"
        )
    step = -(-len(files) // MOST)
    return torch.stack([preprocess(path) for path in files[::step]])


def _built_in(preprocess: "Preprocess") -> "Pixels":
    """Return the pixels of scikit-learn's two photographs, varied at random, and of noise."""
    import numpy as np
    import torch
    from PIL import Image
    from sklearn.datasets import load_sample_images

    from askance.features.views import augment
    from askance.pipeline.seeding import generator

    random, size = generator("export"), preprocess.preprocessing.size
    first, second = map(Image.fromarray, load_sample_images().images)
    varied = [augment((first, second)[n % 2], size, random) for n in range(VARIED)]
    noise = random.integers(0, 256, (NOISE, size, size, 3), np.uint8)
    return torch.from_numpy(np.concatenate([varied, noise])).permute(0, 3, 1, 2).contiguous()


def _about(model: "Model", precision: str) -> str:
    saved = model.saved
    told = f"{saved.name} (seed {saved.seed}) on {saved.backbone['backbone']}, in {precision}"
    trained = saved.backbone["precision"]
    return told if trained == "float32" else f"{told}; the head was trained in {trained}"


def _tell(path: Path, form: str, difference: "Difference", pixels: "Pixels") -> None:
    print(f"{path}: {path.stat().st_size / 1e6:.1f} MB, {form}")
    print(f"checked   {len(pixels)} pictures, against torch in float32: {difference}")


main = command(run)

if __name__ == "__main__":
    typer.run(main)
