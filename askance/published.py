"""The original program's files, to ours and back: its heads, and its caches of embeddings."""

import json
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from jaxtyping import Float64

from askance.features.recipe import Recipe
from askance.features.views import View
from askance.pipeline.artifacts import Place, atomic, place
from askance.pipeline.command import TooManyRefusedError, command
from askance.pipeline.progress import progress
from askance.stages import options as o

if TYPE_CHECKING:
    from askance.features.backbone import Backbone
    from askance.features.store import FeatureStore
    from askance.heads.checkpoint import SavedHead
    from askance.heads.published import Published

SIDE = 224  # pixels, whatever the backbone, unless the original was told otherwise
NAME = re.compile(r"[\w.-]+")


def import_head(
    checkpoint: Annotated[Path, typer.Argument(help="of the original program, *.pth.tar")],
    out: Annotated[Path, typer.Argument(help="the head to write, <head>-<seed>.safetensors")],
    *,
    backbone: o.BackboneName,
    weights: o.Weights = "pretrained",
    size: Annotated[
        int, typer.Option(min=0, help="side in pixels; 0: as the checkpoint tells, or 224")
    ] = 0,
    scale: Annotated[
        Place | None,
        typer.Option(parser=place, help="a store of upstream images, for percentiles"),
    ] = None,
) -> None:
    """Turn a head of the original program into one of ours; no code of its file is ever run.

    Without --scale nothing is known of its upstream images, and percentiles are NaN.
    """
    from askance.features.backbone import load_backbone
    from askance.heads.checkpoint import QUANTILES, SavedHead, save
    from askance.heads.published import read

    found = read(checkpoint)
    loaded = load_backbone(backbone, weights, size or found.side or SIDE, "published", "float32")
    compared = _check_backbone(found, loaded, backbone, checkpoint)
    saved = SavedHead(
        "ranking",
        found.seed,
        found.head,
        np.full(QUANTILES, np.nan),
        found.sizes,
        _card(loaded, backbone),
        {"imported": found.origin},
    )
    if scale is not None:
        saved = replace(saved, quantiles=_quantiles(saved, scale))
    save(out, saved)
    known = "percentiles unknown: no --scale" if scale is None else f"percentiles among {scale}"
    shape = "-".join(map(str, [found.sizes["dim"], *[found.sizes["width"]] * found.sizes["depth"]]))
    same = f"of which {compared} tensors are in the file, the same"
    print(f"{out}: ranking, {shape}-1, on {backbone}, {same}; {known}")


def _check_backbone(found: "Published", loaded: "Backbone", name: str, checkpoint: Path) -> int:
    """Stop unless the head takes what the backbone gives, as far as the checkpoint tells.

    Returns how many tensors of the backbone are in the file, and are the same.
    """
    import torch

    dim, width = found.sizes["dim"], loaded.width
    if dim != width:
        raise ValueError(
            f"expected a backbone of {dim} columns, as the head in {checkpoint} takes"
            f" ({found.origin.get('arch', 'arch not told')}), got {width} of {name}: name its own"
        )
    config: Any = loaded.network.pretrained_cfg
    compared = 0
    for tensor, ours in loaded.network.state_dict().items():
        theirs = found.backbone.get(tensor)
        if theirs is None or theirs.shape != ours.shape:  # as a grid of positions for other sizes
            continue
        if tensor.startswith(f"{config['classifier']}."):  # which the head never sees
            continue
        if not torch.allclose(theirs.float(), ours.float()):
            raise ValueError(
                f"expected the weights that the head in {checkpoint} was trained on, which are in"
                f" it, got others of {name} ({tensor}): name a checkpoint of those by --weights"
            )
        compared += 1
    return compared


def _card(loaded: "Backbone", name: str) -> dict[str, Any]:
    """Return what `FeatureStore.backbone` says of a store extracted with a backbone."""
    card = {
        "backbone": name,
        "weights": loaded.weights_hash(),
        "preprocessing": asdict(loaded.preprocessing),
        "precision": loaded.precision,
    }
    return json.loads(json.dumps(card))  # as it will be read: lists, not tuples


def _quantiles(saved: "SavedHead", scale: Place) -> Float64[np.ndarray, " q"]:
    """Return the quantiles of the uncertainty over all rows of a store.

    Raises:
        ValueError: not a store, or one of another backbone.
    """
    import torch

    from askance.heads.checkpoint import quantiles
    from askance.stages.cases import Images
    from askance.stages.uncertainties import uncertainty

    store = _embeddings(scale)
    saved.check_backbone(store.backbone, str(scale))
    view = "plain" if "plain" in store.views else store.views[0]
    with progress(f"score {scale.name}", len(store.rows), "images") as advance:
        found = uncertainty([saved], Images(store, store.rows), view, advance)[0]
    return quantiles(torch.from_numpy(found))


def import_cache(
    dataset: Annotated[Path, typer.Argument(help="of the original program, dataset.hdf5")],
    out: Annotated[
        Place, typer.Argument(parser=place, help="the store: stores/<set>.zarr, or a URL")
    ],
    *,
    backbone: o.BackboneName,
    weights: o.Weights = "pretrained",
    size: Annotated[int, typer.Option(min=1, help="side in pixels that it was made with")] = SIDE,
    classifier: o.OwnClassifier = "own",
    block: o.BlockRows = 8192,
    refusals: o.Refusals = 0.0,
) -> None:
    """Turn a cache of the original program into a store; go on where an earlier run stopped."""
    from askance.features.embed import Embedder
    from askance.features.published import embedded, index_of, layout_of
    from askance.features.writer import StoreWriter

    embedder = Embedder.load(
        Recipe(
            (View.AUGMENT,),
            backbone,
            weights,
            size,
            "published",
            dtype="float32",
            classifier=classifier,
            batch=256,  # rows whose logits are held at a time
            block=block,
            device="cpu",
        )
    )
    index = index_of(dataset, embedder.backbone.width)
    with StoreWriter(out, layout_of(embedder, index), index) as writer:
        print(writer.message, flush=True)
        missing = writer.missing()
        rows = sum(len(left.rows) for left in missing)
        with progress(f"import {dataset.name}", rows, "rows") as advance:
            for part in embedded(dataset, embedder, index, missing):
                writer.write(part.block, part.arrays, part.refused)
                advance(len(part.rows))
        refused = len(writer.finish())
    if refused > refusals * len(index):
        raise TooManyRefusedError(
            f"expected at most {refusals:.2%} of {len(index)} rows refused, got {refused} that are"
            f" not finite, listed in {out}/status/refused.parquet: allow them by --refusals"
        )
    print(f"{out}: {len(index)} rows of {dataset}, {refused} refused")


def export_cache(
    store: Annotated[Place, typer.Argument(parser=place, help="the store to export")],
    folder: Annotated[Path, typer.Argument(help="the --data-dir of the original program")],
    *,
    name: Annotated[str, typer.Option(help="of the cache; default: the store's")] = "",
    split: Annotated[str, typer.Option(help="as the original is told it")] = "train",
) -> None:
    """Write the rows of a store as a cache of the original program, its views one after another."""
    from askance.features.published import FILE, write

    features = _embeddings(store)
    about = _arguments(features, (name or store.stem).lower(), split)  # it reads lower-case names
    cache = f"hdf5_{about['dataset']}_{split}_{about['model']}"
    if not NAME.fullmatch(cache):
        raise ValueError(f"expected names of letters, digits and _.-, got the folder {cache!r}")
    out = folder / cache
    told = "".join(f"{key}: {json.dumps(value)}\n" for key, value in about.items())
    if out.exists() and _said(out / "args.yaml") != told:
        raise ValueError(f"expected nothing in {out}, got another cache: remove it, or say --name")
    if not out.exists():
        rows = len(features.rows) * len(features.views)
        with atomic(out) as temporary, progress(f"export {store.name}", rows, "rows") as advance:
            temporary.mkdir()
            write(temporary / FILE, features, advance)
            (temporary / "args.yaml").write_text(told)
    print(f"{out}: {len(features.rows):,} rows x {len(features.views)} views")


def _embeddings(path: Place) -> "FeatureStore":
    from askance.features.store import FeatureStore

    store = FeatureStore.open(path)
    store.array("embedding")  # or says that a probe's store has none
    return store


def _arguments(features: "FeatureStore", name: str, split: str) -> dict[str, Any]:
    """Return what `args.yaml` says; each value, as JSON, is YAML, too."""
    preprocessing = features.content["preprocessing"]
    return {
        "dataset": name,
        "split": split,
        "model": features.content["backbone"],
        "epochs": len(features.views),
        "img_size": preprocessing["size"],
        "crop_pct": preprocessing["crop"],
        "mean": preprocessing["mean"],
        "std": preprocessing["std"],
        "store": features.edition,
    }


def _said(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


COMMANDS: dict[str, Callable[..., None]] = {
    "import-head": command(import_head),
    "import-cache": command(import_cache),
    "export-cache": command(export_cache),
}
