"""What exporting costs and gains: speed, size, and how far answers are from torch in float32.

Of the run in this folder, on all images of its sets, and of EfficientNet-Lite0 at 128 pixels with
a random head, which knows nothing but costs as much. One thread; the contenders take turns and each
reports the median of its rounds. R-AUROC is that of the run's hits.
"""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from askance import metrics
from askance.agreement import Precision, Run
from askance.eval.ranks import spearman
from askance.features.backbone import Backbone, load_backbone
from askance.features.blocks import Block, task
from askance.features.index import read_index
from askance.features.reader import images
from askance.features.views import decode
from askance.heads.catalogue import HEADS
from askance.heads.checkpoint import SavedHead, quantiles
from askance.heads.head import Setup
from askance.model import Model, Preprocess, load
from askance.pipeline.provenance import machine
from askance.portable import INPUT, OUTPUTS, Graph, running, session, write_onnx
from benchmarks.rates import measured

SETS, BATCH = ("emoji", "cifar10"), 32
PRECISIONS: tuple[Precision, ...] = ("float32", "float16", "int8")


def untrained() -> Model:
    """Build Lite0 with a random head."""
    backbone = load_backbone("tf_efficientnet_lite0.pypi", "pretrained", 128, "own", "float32")
    width = backbone.width
    torch.manual_seed(0)
    setup = Setup(width, 512, 2, torch.zeros(1, width), torch.zeros(1))
    head = HEADS["ranking"](setup).eval()
    scale = quantiles(head.uncertainty(torch.randn(1000, width)))
    card = {"backbone": "tf_efficientnet_lite0.pypi", "weights": "", "precision": "float32"}
    return Model(backbone, SavedHead("ranking", 0, head, scale, setup.sizes, card, {}))


def pictures(name: str, preprocess: Preprocess) -> Tensor:
    """Return the pixels of a set's images, in the order of its index."""
    index = read_index(Path("data", name))
    found = []
    for key, content in images([task(index, Block(0, 0, len(index))).samples]):
        assert isinstance(content, bytes), f"{key}: {content}"
        found.append(preprocess(decode(content)))
    return torch.stack(found)


def in_torch(model: Model, precision: str = "float32", compiled: bool = False) -> Run:
    """Return the model in torch, in the precision of its products."""
    graph = Graph(model)
    old = graph.model.backbone
    graph.model.backbone = Backbone(old.network, old.preprocessing, precision)
    if compiled:
        graph.model.backbone.compile_network()
    return running(graph)


def contenders(model: Model, pixels: Tensor, folder: Path) -> dict[str, Run]:
    """Return what answers; ONNX files are written to `folder` under the contender's name."""
    found = {"torch float32": in_torch(model), "torch bfloat16": in_torch(model, "bfloat16")}
    if shutil.which("c++"):
        found["torch.compile float32"] = in_torch(model, compiled=True)
    for precision in PRECISIONS:
        path = folder / f"onnx {precision}"
        try:
            print(f"onnx {precision}: {write_onnx(model, path, pixels[:BATCH], precision)}")
        except ValueError as error:
            print(f"onnx {precision}: {error}")
            continue
        opened = session(path, 1)
        found[path.name] = lambda part, opened=opened: opened.run(OUTPUTS, {INPUT: part.numpy()})
    return found


def answers(run: Run, pixels: Tensor, batch: int = BATCH) -> list[np.ndarray]:
    """Return embeddings, uncertainties and percentiles."""
    parts = zip(*map(run, pixels.split(batch)), strict=True)
    return [np.concatenate(part) for part in parts]


def distance(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return one minus the cosine of each row's pair."""
    first, second = (e / np.linalg.norm(e, axis=1, keepdims=True) for e in (one, other))
    return ((first - second).astype(np.float64) ** 2).sum(1) / 2


def r_aurocs(uncertainty: np.ndarray) -> str:
    """Return R-AUROC, set by set, of the uncertainties of all images."""
    told, start = "; R-AUROC", 0
    for name in SETS:
        table = pq.read_table(Path("neighbours", f"{name}.parquet"))
        rows = start + table["row"].to_numpy()
        told += f" {metrics.r_auroc(uncertainty[rows], table['hit'].to_numpy()):.4f} ({name})"
        start += len(read_index(Path("data", name)))
    return told


def compare(model: Model, judged: bool) -> None:
    """Print a row for each contender; `judged` says that the head is of the run's hits."""
    sets = [pictures(name, model.preprocess) for name in SETS]
    pixels = torch.cat(sets)
    with tempfile.TemporaryDirectory() as folder:
        ways = contenders(model, pixels, Path(folder))
        batch = pixels[:BATCH]
        rates = measured({n: lambda run=run: len(run(batch)[0]) for n, run in ways.items()})
        files = Path(folder).iterdir()
        sizes = {file.name: f" {file.stat().st_size / 1e6:.1f} MB" for file in files}
        expected = answers(ways["torch float32"], pixels)
        for name, run in ways.items():
            got, alone = answers(run, pixels), answers(run, batch, 1)
            far, first = distance(got[0], expected[0]), rates["torch float32"]
            moved, beside = abs(got[2] - expected[2]).max(), abs(got[2][:BATCH] - alone[2]).max()
            print(
                f"{name:22} {rates[name].cpu:6.1f} img/CPU-s (x{rates[name].cpu / first.cpu:.2f})"
                f" {rates[name].wall:6.1f} img/s{sizes.get(name, '')}; 1 - cosine {far.mean():.1e},"
                f" at most {far.max():.1e}; Spearman {spearman(got[1], expected[1]):.5f};"
                f" percentile {moved:.4f} at most, and {beside:.4f} between batches of {BATCH} and"
                f" 1{r_aurocs(got[1]) if judged else ''}",
                flush=True,
            )


def main() -> None:
    """Compare the run's model, and Lite0."""
    torch.set_num_threads(1)
    for model, judged in ((load("."), True), (untrained(), False)):
        saved = model.saved
        print(f"{saved.backbone['backbone']}, {saved.name}; {machine()}; batch {BATCH}, 1 thread")
        compare(model, judged)


if __name__ == "__main__":
    main()
