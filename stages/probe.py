"""probe: the upstream store to the classifier that defines its losses."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer
from jaxtyping import Int64, Integer

from askance.pipeline.artifacts import Place, place, remove
from askance.pipeline.command import command
from askance.pipeline.runs import Run

if TYPE_CHECKING:
    from askance.features.classify import Classifier
    from askance.features.layout import Layout
    from askance.features.store import FeatureStore
    from askance.features.writer import StoreWriter

Labels = Integer[np.ndarray, " c"]  # of the classifier's columns, rising
Folds = Int64[np.ndarray, " n"]
Fitted = tuple[Folds, list["Classifier"]]  # each row's fold; a classifier per fold


def run(
    store: Annotated[Place, typer.Argument(parser=place, help="the upstream store")],
    out: Annotated[
        Place, typer.Argument(parser=place, help="the store to write, stores/<set>.probe.zarr")
    ],
    *,
    columns: Annotated[
        Literal["all", "present"],
        typer.Option(help="of a backbone's own classifier: all, or the labels that occur"),
    ] = "all",
    folds: Annotated[int, typer.Option(min=2, help="of the cross-fitting, by image")] = 5,
    decay: Annotated[float, typer.Option(min=0, help="L2 penalty of a fitted probe")] = 0.01,
    iterations: Annotated[int, typer.Option(min=1, help="of L-BFGS, at most")] = 50,
) -> None:
    """Give every upstream row the loss of a classifier that never saw its image.

    A store that holds the backbone's own classifier keeps that one, restricted to `columns`: it
    was trained elsewhere, so its losses need no cross-fitting.
    """
    from askance.features.store import FeatureStore
    from askance.features.writer import StoreWriter

    this, features = Run("probe"), FeatureStore.open(store)
    own = bool(features.content["classifier"])
    label = _columns(features, columns if own else "present")
    settings: dict[str, Any] = {"columns": columns}
    if own:
        fold, classifiers = _restricted(features, label)
    else:
        fold, classifiers = _fitted(features, label, folds, decay, iterations)
        settings = {"folds": folds, "decay": decay, "iterations": iterations}
    _check_replaceable(out)
    remove(out)  # seconds to make, so always made anew: no older code's losses can stay
    layout = _layout(features, label, fold, classifiers, settings)
    with StoreWriter(out, layout, features.index) as writer:
        _write(writer, features, label, fold, classifiers)
        writer.finish()
    this.log(out, len(features.rows), "images")
    print(_summary(FeatureStore.open(out)))


def _check_replaceable(out: Place) -> None:
    from askance.features.store import FORMAT, attributes
    from askance.pipeline.artifacts import listing

    if listing(out) and attributes(out).get("format") != FORMAT:
        raise ValueError(f"expected a store or nothing, got something else at {out}: move it")


def _columns(features: "FeatureStore", columns: Literal["all", "present"]) -> Labels:
    """Return the label of each column of the classifier, ascending."""
    if columns == "all":
        return np.arange(features.array("classifier/bias").shape[0], dtype=np.int32)
    return np.unique(features.labels)


def _restricted(features: "FeatureStore", label: Labels) -> Fitted:
    from askance.features.classify import Classifier

    whole = features.classifier
    kept = Classifier(whole.weight[label], whole.bias[label])
    return np.zeros(len(features.status), np.int64), [kept]


def _fitted(
    features: "FeatureStore", label: Labels, folds: int, decay: float, iterations: int
) -> Fitted:
    """Fit one probe per fold and, last, the one for use on all rows."""
    import torch

    from askance.features.classify import Classifier
    from askance.heads.probe import cross_fit, fit_probe, folds_of

    column = np.searchsorted(label, features.labels)
    dealt = folds_of(column, folds)
    embedding = torch.from_numpy(features.read("embedding"))
    y = torch.from_numpy(column)
    probes = cross_fit(embedding, y, torch.from_numpy(dealt), len(label), decay, iterations)
    flat, views = embedding.flatten(0, 1), embedding.shape[1]
    probes.append(fit_probe(flat, y.repeat_interleave(views), len(label), decay, iterations))
    fold = np.zeros(len(features.status), np.int64)
    fold[features.rows] = dealt
    return fold, [Classifier(p.weight.numpy(), p.bias.numpy()) for p in probes]


def _layout(
    features: "FeatureStore",
    label: Labels,
    fold: Folds,
    classifiers: list["Classifier"],
    settings: dict[str, Any],
) -> "Layout":
    """Describe the store; `folds/` holds the classifiers that each never saw the rows of a fold."""
    from askance.features.layout import Array, Layout

    views = len(features.views)
    names = ["loss", "logsumexp", "entropy"]
    known: dict[str, np.ndarray] = {}
    whole = {
        "classifier/weight": classifiers[-1].weight,
        "classifier/bias": classifiers[-1].bias,
        "classifier/label": label,
    }
    if "folds" in settings:
        names.append("loss_in_sample")
        known["fold"] = fold.astype(np.int32)
        whole["folds/weight"] = np.stack([each.weight for each in classifiers[:-1]])
        whole["folds/bias"] = np.stack([each.bias for each in classifiers[:-1]])
    return Layout(
        arrays={name: Array((views,), "float32", (views,)) for name in names},
        block=int(features.content["block"]),
        content={
            "views": list(features.views),
            "probe": settings,
            "upstream": features.fingerprint,
        },
        known=known,
        whole=whole,
    )


def _write(
    writer: "StoreWriter",
    features: "FeatureStore",
    label: Labels,
    fold: Folds,
    classifiers: list["Classifier"],
) -> None:
    """Write the losses block by block; a row's loss is that of its own fold's classifier."""
    from askance.features.classify import scores
    from askance.features.store import REFUSED

    labels = np.asarray(features.array("label")[:])
    for block in writer.missing():
        rows = slice(block.start, block.stop)
        embedding = np.asarray(features.array("embedding")[rows], np.float32)
        column = np.searchsorted(label, labels[rows]).clip(max=len(label) - 1)
        logits = np.empty((*embedding.shape[:2], len(label)), np.float32)
        for number in np.unique(fold[rows]):
            here = fold[rows] == number
            logits[here] = classifiers[number].logits(embedding[here])
        arrays = scores(logits, column)
        if "loss_in_sample" in writer.layout.arrays:
            arrays["loss_in_sample"] = scores(classifiers[-1].logits(embedding), column)["loss"]
        refused = np.flatnonzero(features.status[rows] == REFUSED) + block.start
        writer.write(block, arrays, dict.fromkeys(refused.tolist(), "refused upstream"))


def _summary(probe: "FeatureStore") -> str:
    classes, loss = probe.array("classifier/label").shape[0], probe.read("loss").mean()
    line = f"{probe.path}: {classes} classes, loss {loss:.3f}"
    if "loss_in_sample" not in probe.group:
        return line
    return f"{line} cross-fitted, {probe.read('loss_in_sample').mean():.3f} in sample"


main = command(run)

if __name__ == "__main__":
    typer.run(main)
