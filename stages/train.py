"""train: the upstream store and its losses to heads, a few seconds each."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from askance.pipeline.artifacts import Place, atomic, place, write_json
from askance.pipeline.command import command
from askance.pipeline.progress import progress

if TYPE_CHECKING:
    import torch

    from askance.features.store import FeatureStore
    from askance.heads.head import Setup

POINTS = 100  # of a training curve


def run(
    store: Annotated[Place, typer.Argument(parser=place, help="the upstream store")],
    probe: Annotated[
        Place, typer.Argument(parser=place, help="the store of its losses, from probe")
    ],
    out: Annotated[Path, typer.Argument(help="the folder of heads to write")],
    curves: Annotated[Path, typer.Argument(help="the JSON of training curves to write")],
    *,
    heads: Annotated[list[str], typer.Option(help="which heads; repeat for more")],
    seeds: Annotated[list[int], typer.Option(help="one training each; repeat for more")],
    steps: Annotated[int, typer.Option(min=1)] = 600,
    batch: Annotated[int, typer.Option(min=2, help="rows of a step; pairs need an even one")] = 256,
    lr: Annotated[float, typer.Option(help="rate at batch 256; goes with its square root")] = 1e-3,
    width: Annotated[int, typer.Option(min=1, help="of the hidden layers")] = 512,
    depth: Annotated[int, typer.Option(min=1, help="number of hidden layers")] = 2,
) -> None:
    """Train every head with every seed; heads that need no training are saved once."""
    import torch

    from askance.features.store import FeatureStore
    from askance.heads.catalogue import find
    from askance.heads.checkpoint import SavedHead, quantiles, save
    from askance.heads.fit import fit, paper_schedule, peak_rate, shuffled

    kinds = {name: find(name) for name in heads}
    features, losses = FeatureStore.open(store), FeatureStore.open(probe)
    embedding, loss = _rows(features, losses)
    setup = _setup(losses, embedding.shape[1], width, depth)
    scale = torch.from_numpy(_scale(features))
    trainings = [(n, s) for n, kind in kinds.items() for s in (seeds if kind.trained else [0])]
    history: list[dict[str, Any]] = []
    with atomic(out) as folder, progress("train", len(trainings), "heads") as advance:
        folder.mkdir()
        for name, seed in trainings:
            torch.manual_seed(seed)
            head = kinds[name](setup)
            if head.trained:
                batches = shuffled(embedding, loss, batch, steps, seed)
                objective = fit(head, batches, paper_schedule(steps, peak_rate(lr, batch)))
                history += _curve(name, seed, objective)
            note = {"place": heads.index(name), "upstream": store.stem}
            note |= {"probe": losses.fingerprint}
            note |= {"steps": steps, "batch": batch, "lr": lr}
            scaled = quantiles(head.uncertainty(scale))
            saved = SavedHead(name, seed, head, scaled, features.backbone, note)
            save(folder / f"{name}-{seed}.safetensors", saved, setup)
            advance(1)
    write_json(curves, history)


def _rows(features: "FeatureStore", losses: "FeatureStore") -> "tuple[torch.Tensor, torch.Tensor]":
    """Return all views of all images as rows, (n v, d) in the stored type, and their losses."""
    import torch

    same = np.array_equal(losses.rows, features.rows)
    if losses.content.get("upstream") != features.fingerprint or not same:
        raise ValueError(
            f"expected the losses of {features.path}, got {losses.path}, made from another store:"
            " run probe again"
        )
    embedding = torch.from_numpy(features.read("embedding")).flatten(0, 1)
    return embedding, torch.from_numpy(losses.read("loss")).flatten()


def _setup(losses: "FeatureStore", dim: int, width: int, depth: int) -> "Setup":
    import torch

    from askance.heads.head import Setup

    known = losses.classifier
    weight, bias = torch.from_numpy(known.weight), torch.from_numpy(known.bias)
    return Setup(dim, width, depth, weight, bias)


def _scale(features: "FeatureStore") -> Any:  # noqa: ANN401
    """Return the embeddings whose uncertainties are the scale of percentiles, (n, d).

    The plain views where the store has some: what users score are pictures, not augmentations.
    """
    if "plain" in features.views:
        return features.embedding("plain")
    embedding = features.read("embedding")
    return embedding.reshape(-1, embedding.shape[-1])


def _curve(head: str, seed: int, objective: list[float]) -> list[dict[str, Any]]:
    """Average the objective over at most 100 runs of steps."""
    parts = np.array_split(np.array(objective), min(POINTS, len(objective)))
    ends = np.cumsum([len(part) for part in parts])
    return [
        {"head": head, "seed": seed, "step": int(end), "objective": float(part.mean())}
        for end, part in zip(ends, parts, strict=True)
    ]


main = command(run)

if __name__ == "__main__":
    typer.run(main)
