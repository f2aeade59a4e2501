"""train: the upstream store and its losses to heads, a few seconds each."""

import math
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from askance.pipeline.artifacts import Place, atomic, place
from askance.pipeline.command import command
from askance.pipeline.devices import device as device_called
from askance.pipeline.progress import progress
from askance.pipeline.runs import Run

if TYPE_CHECKING:
    import torch
    from dvclive import Live

    from askance.features.batches import Batches
    from askance.features.store import FeatureStore
    from askance.heads.fit import Best, Training
    from askance.heads.head import Head, Setup
    from askance.heads.resume import State
    from askance.stages.sample import Sample

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
    ] = "float32",
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
    from askance.stages.sample import Sample

    _check_curves()
    trained = [name for name in heads if find(name).trained]
    if batch % 2:
        raise ValueError(
            f"expected an even batch, whose rows form pairs, got {batch}: make train.batch even"
        )
    this = Run("train")
    features, losses = FeatureStore.open(store), FeatureStore.open(probe)
    on = device_called(device)
    options = Options(steps, batch, lr, width, depth, holdout, memory, loss, keep, precision)
    sample = Sample.draw(features, holdout, on)
    batches = _batches(features, losses, trained, sample, options, on) if trained else None
    setup = _setup(features, losses, options, on)
    training = _training(trained, seeds, setup, options)
    content = [features.fingerprint, losses.fingerprint, trained, seeds, asdict(options), str(on)]
    state = State(out.with_name(f".{out.name}.state"), content)
    curves.mkdir(parents=True, exist_ok=True)
    taken = _train(training, batches, sample, state, steps, curves) if batches else 0
    note = {"upstream": store.stem, "probe": losses.fingerprint} | asdict(options)
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
    this.log(out, taken, "steps")
    print(_summary(training, sample.queries, steps))


@dataclass(frozen=True)
class Options:
    """What decides a training beside its data, as `run` has it."""

    steps: int
    batch: int
    lr: float
    width: int
    depth: int
    holdout: float
    memory: float
    loss: str
    keep: str
    precision: str


def _setup(
    features: "FeatureStore", losses: "FeatureStore", options: Options, on: "torch.device"
) -> "Setup":
    import torch

    from askance.heads.head import Setup

    known, dim = losses.classifier, features.array("embedding").shape[-1]
    weight, bias = torch.from_numpy(known.weight).to(on), torch.from_numpy(known.bias).to(on)
    return Setup(dim, options.width, options.depth, weight, bias)


def _training(names: list[str], seeds: list[int], setup: "Setup", options: Options) -> "Training":
    from askance.heads.fit import Training, paper_schedule, peak_rate

    rate = paper_schedule(options.steps, peak_rate(options.lr, options.batch))
    return Training(names, seeds, setup, rate, bfloat16=options.precision == "bfloat16")


def _batches(
    features: "FeatureStore",
    losses: "FeatureStore",
    names: list[str],
    sample: "Sample",
    options: Options,
    on: "torch.device",
) -> "Batches":
    """Return the batches that the heads need; in bfloat16 if all of them round to it anyway."""
    import torch

    from askance.features.batches import Batches
    from askance.heads.catalogue import find
    from askance.heads.head import Need

    kinds = [find(name) for name in names]
    rounded = options.precision == "bfloat16" and all(kind.in_bfloat16 for kind in kinds)
    return Batches(
        features,
        losses,
        batch=options.batch,
        rows=any(Need.PAIRS not in kind.needs for kind in kinds),
        pairs=any(Need.PAIRS in kind.needs for kind in kinds),
        held_out=sample.held_out,
        seed=0,  # all seeds see the same batches
        loss="loss" if options.loss == "cross-fitted" else "loss_in_sample",
        dtype=torch.bfloat16 if rounded else torch.float32,
        device=on,
        memory=int(options.memory * 2**30),
    )


def _train(
    training: "Training",
    batches: "Batches",
    sample: "Sample",
    state: "State",
    steps: int,
    curves: Path,
) -> int:
    """Take the steps that are left; validate, log and save now and then. Return how many."""
    from askance.heads.head import Batch

    history, every = state.restore(training), max(1, steps // VALIDATIONS)
    left = steps - training.done
    if training.done:
        print(f"train: going on after step {training.done} of {steps}", file=sys.stderr)
    with _live(curves) as live, progress("train", left, "steps") as advance:
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
    return left


def _check_curves() -> None:
    """Stop before anything is read, rather than after."""
    try:
        import dvclive  # noqa: F401
    except ImportError as error:
        raise ValueError(
            f"expected DVCLive for the training curves, got {error}: install askance[demo]"
        ) from error


def _live(folder: Path) -> "Live":
    """Open DVCLive's log, which `dvc plots` reads; the graph itself is none of its business."""
    from dvclive import Live

    quiet: dict[str, Any] = {"save_dvc_exp": False, "dvcyaml": None, "report": None}
    return Live(str(folder), monitor_system=False, **quiet)


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
