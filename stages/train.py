"""train: the upstream store and its losses to heads, a few seconds each."""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer

from askance.pipeline.artifacts import Place, atomic, place
from askance.pipeline.command import command
from askance.pipeline.devices import device as device_called
from askance.pipeline.progress import progress
from askance.pipeline.seeding import hashed

if TYPE_CHECKING:
    import torch
    from dvclive import Live

    from askance.features.batches import Batches
    from askance.features.store import FeatureStore
    from askance.heads.fit import Best, Training
    from askance.heads.head import Head, Setup
    from askance.heads.resume import State

SCALE, GALLERY, QUERIES = 100_000, 20_000, 5_000  # images at most: of percentiles, of validation
VALIDATIONS = 20  # in a training: the points of its curves


def run(
    store: Annotated[Place, typer.Argument(parser=place, help="the upstream store")],
    probe: Annotated[
        Place, typer.Argument(parser=place, help="the store of its losses, from probe")
    ],
    out: Annotated[Path, typer.Argument(help="the folder of heads to write")],
    curves: Annotated[Path, typer.Argument(help="the folder of training curves to write")],
    *,
    heads: Annotated[list[str], typer.Option(help="which heads; repeat for more")],
    seeds: Annotated[list[int], typer.Option(help="one training each; repeat for more")],
    steps: Annotated[int, typer.Option(min=1)] = 600,
    batch: Annotated[int, typer.Option(min=2, help="rows of a step; pairs need an even one")] = 256,
    lr: Annotated[float, typer.Option(help="rate at batch 256; goes with its square root")] = 1e-3,
    width: Annotated[int, typer.Option(min=1, help="of the hidden layers")] = 512,
    depth: Annotated[int, typer.Option(min=1, help="number of hidden layers")] = 2,
    loss: Annotated[
        Literal["cross-fitted", "in-sample"],
        typer.Option(help="of a fitted probe: on images new to it, or on those it was fitted to"),
    ] = "cross-fitted",
    holdout: Annotated[
        float,
        typer.Option(min=0, max=0.5, help="share of the images to validate on; 0: keep the last"),
    ] = 0.1,
    keep: Annotated[
        Literal["best", "last"], typer.Option(help="best: of the largest R-AUROC on these")
    ] = "best",
    precision: Annotated[
        Literal["bfloat16", "float32"], typer.Option(help="of products, where it is harmless")
    ] = "bfloat16",
    memory: Annotated[float, typer.Option(help="GiB of rows to hold; more are streamed")] = 8.0,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
) -> None:
    """Train all heads with all seeds on the same batches, so that each block is read once a pass.

    Heads that need no training are saved once. A training that was killed goes on where it last
    saved its state, to the bytes of an unbroken one (CPU).
    """
    from askance.features.store import FeatureStore
    from askance.heads.catalogue import find
    from askance.heads.checkpoint import SavedHead, quantiles, save
    from askance.heads.resume import State

    _check_curves()
    trained = [name for name in heads if find(name).trained]
    if batch % 2:
        raise ValueError(
            f"expected an even batch, whose rows form pairs, got {batch}: make train.batch even"
        )
    features, losses = FeatureStore.open(store), FeatureStore.open(probe)
    on = device_called(device)
    options: dict[str, Any] = {"steps": steps, "batch": batch, "lr": lr}
    options |= {"width": width, "depth": depth, "holdout": holdout, "memory": memory}
    options |= {"loss": loss, "keep": keep, "precision": precision}
    sample = _Sample.draw(features, holdout, on)
    batches = _batches(features, losses, trained, sample, options, on) if trained else None
    setup = _setup(features, losses, options, on)
    training = _training(trained, seeds, setup, options)
    content = [features.fingerprint, losses.fingerprint, trained, seeds, options, str(on)]
    state = State(out.with_name(f".{out.name}.state"), content)
    if batches:
        _train(training, batches, sample, state, steps, curves)
    else:
        curves.mkdir(parents=True, exist_ok=True)
    note = {"upstream": store.stem, "probe": losses.fingerprint} | options
    with atomic(out) as folder:
        folder.mkdir()
        for order, name in enumerate(heads):
            for seed in seeds if name in trained else [0]:
                head, found = _finished(training, name, seed, keep)
                scale = quantiles(head.uncertainty(sample.scale).cpu())
                about = note | {"place": order} | found
                saved = SavedHead(
                    name, seed, head.cpu(), scale, setup.sizes, features.backbone, about
                )
                save(folder / f"{name}-{seed}.safetensors", saved)
    state.clear()
    print(_summary(training, sample.queries, steps))


@dataclass(frozen=True)
class _Sample:
    """Upstream images that every head is looked at with, ordered by their keys' hashes.

    `scale` (k, d) are those whose uncertainties give percentiles; the first of them, as many as
    there are labels, are the gallery of validation; the first `queries` of these search it, and
    are never trained on. Plain views, where the store has some: what users score are pictures.
    """

    scale: "torch.Tensor"
    label: "torch.Tensor"
    queries: int
    held_out: np.ndarray

    @classmethod
    def draw(cls, features: "FeatureStore", holdout: float, device: "torch.device") -> "_Sample":
        import torch

        order = hashed(features.keys)
        queries = min(math.ceil(holdout * len(order)), QUERIES)
        held_out = np.zeros(len(order), bool)
        held_out[order[:queries]] = True
        view = "plain" if "plain" in features.views else features.views[0]
        scale = torch.from_numpy(features.some(view, order[:SCALE])).to(device)
        label = torch.from_numpy(features.labels[order[:GALLERY]]).to(device)
        return cls(scale, label, queries, held_out)

    def r_auroc(self, head: "Head") -> float:
        """Return how well a head foretells wrong neighbours of held-out images; NaN if undefined.

        The neighbours are those of the head's own representation.
        """
        import torch

        from askance.eval.holdout import hits
        from askance.eval.ranks import auroc

        if not self.queries:
            return math.nan
        uncertainty = head.uncertainty(self.scale[: self.queries]).double().cpu().numpy()
        if not head.mapped:
            return auroc(uncertainty, ~self.hits)
        with torch.inference_mode():
            mapped = head.representation(self.scale[: len(self.label)])
        return auroc(uncertainty, ~hits(mapped, self.label, self.queries))

    @cached_property
    def hits(self) -> np.ndarray:
        """Whether the nearest neighbour by the frozen embedding has the same label, per query."""
        from askance.eval.holdout import hits

        return hits(self.scale[: len(self.label)], self.label, self.queries)


def _setup(
    features: "FeatureStore", losses: "FeatureStore", options: dict[str, Any], on: "torch.device"
) -> "Setup":
    import torch

    from askance.heads.head import Setup

    known, dim = losses.classifier, features.array("embedding").shape[-1]
    weight, bias = torch.from_numpy(known.weight).to(on), torch.from_numpy(known.bias).to(on)
    return Setup(dim, options["width"], options["depth"], weight, bias)


def _training(
    names: list[str], seeds: list[int], setup: "Setup", options: dict[str, Any]
) -> "Training":
    from askance.heads.fit import Training, paper_schedule, peak_rate

    rate = paper_schedule(options["steps"], peak_rate(options["lr"], options["batch"]))
    return Training(names, seeds, setup, rate, bfloat16=options["precision"] == "bfloat16")


def _batches(
    features: "FeatureStore",
    losses: "FeatureStore",
    names: list[str],
    sample: _Sample,
    options: dict[str, Any],
    on: "torch.device",
) -> "Batches":
    """Return the batches that the heads need; in bfloat16 if all of them round to it anyway."""
    import torch

    from askance.features.batches import Batches
    from askance.heads.catalogue import find
    from askance.heads.head import Need

    kinds = [find(name) for name in names]
    rounded = options["precision"] == "bfloat16" and all(kind.in_bfloat16 for kind in kinds)
    return Batches(
        features,
        losses,
        batch=options["batch"],
        rows=any(Need.PAIRS not in kind.needs for kind in kinds),
        pairs=any(Need.PAIRS in kind.needs for kind in kinds),
        held_out=sample.held_out,
        seed=0,  # all seeds see the same batches
        loss="loss" if options["loss"] == "cross-fitted" else "loss_in_sample",
        dtype=torch.bfloat16 if rounded else torch.float32,
        device=on,
        memory=int(options["memory"] * 2**30),
    )


def _train(
    training: "Training",
    batches: "Batches",
    sample: _Sample,
    state: "State",
    steps: int,
    curves: Path,
) -> None:
    """Take the steps that are left; validate, log and save now and then."""
    from askance.heads.head import Batch

    history, every = state.restore(training), max(1, steps // VALIDATIONS)
    if training.done:
        print(f"train: going on after step {training.done} of {steps}", file=sys.stderr)
    with _live(curves) as live, progress("train", steps - training.done, "steps") as advance:
        for point in history:
            _log(live, point)
        for step in batches.steps(training.done, steps):
            rows, pairs = (part and Batch(*part) for part in (step.rows, step.pairs))
            training.step(rows, pairs, step.blocks)
            advance(1)
            if training.done % every == 0 or training.done == steps:
                found = {"objective": training.objectives()}
                found["r_auroc"] = training.validate(sample.r_auroc)
                history.append({"step": training.done, **found})
                _log(live, history[-1])
                state.save(training, history)


def _check_curves() -> None:
    """Stop before anything is read, rather than after."""
    try:
        import dvclive  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"expected DVCLive for the training curves, got {error}: install askance[demo]"
        ) from error


@contextmanager
def _live(folder: Path) -> Iterator["Live"]:
    """Yield DVCLive's log, which `dvc plots` reads; the graph itself is none of its business."""
    from dvclive import Live

    with Live(
        str(folder), save_dvc_exp=False, dvcyaml=None, report=None, monitor_system=False
    ) as live:
        yield live


def _log(live: "Live", point: dict[str, Any]) -> None:
    live.step = point["step"]
    for what in ("objective", "r_auroc"):
        for name, value in point[what].items():
            live.log_metric(f"{what}/{name}", value)


def _finished(
    training: "Training", name: str, seed: int, keep: str
) -> "tuple[Head, dict[str, Any]]":
    """Return a head for use, and what to note of its validation."""
    from askance.heads.catalogue import find

    if name not in training.names:
        return find(name)(training.setup).eval(), {}
    if keep == "last":
        return training.head(name, seed), {"step": training.done}
    best = training.best[name, seed]
    score = None if math.isnan(best.score) else best.score
    return training.kept(name, seed), {"step": best.step, "r_auroc": score}


def _summary(training: "Training", queries: int, steps: int) -> str:
    if not queries:
        return "no image was held out: the last checkpoints are kept"
    lines = [f"R-AUROC on {queries:,} held-out images, mean over seeds, the best of each:"]
    for name in training.names:
        best = [training.best[name, seed] for seed in training.seeds]
        score = sum(one.score for one in best) / len(best)
        lines.append(f"{name:>20}  {score:.3f}, after {_range(best)} of {steps} steps")
    return "\n".join(lines if training.names else ["nothing to train"])


def _range(best: "list[Best]") -> str:
    after = [one.step for one in best]
    return f"{min(after)} to {max(after)}" if len(set(after)) > 1 else f"{after[0]}"


main = command(run)

if __name__ == "__main__":
    typer.run(main)
