"""Where a model lies: a head's file, a run's folder, a released folder.

Comes in: a path. Goes out: the head, and what is known around it: the weights of its backbone, its
classifier, and the card that says how it was trained and measured. docs/model.md specifies the
released folder.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from askance.features.store import FeatureStore, attributes
from askance.features.views import INTERPOLATIONS, Precision, Preprocessing
from askance.heads.checkpoint import SavedHead, load, read_card, tensors_hash
from askance.pipeline.artifacts import read_json, sha256, write_json

FORMAT = "askance-model/1"
FILES = CARD, TENSORS, README = "config.json", "model.safetensors", "README.md"
LARGEST, SMALLEST = 1024, 0.1  # size in pixels and crop that a file may ask for: memory is bounded


@dataclass(frozen=True)
class Found:
    """A head and what is known around it.

    `weights` of the backbone are as in `extract.weights`; `about` is what a card says beyond the
    head's own file: metrics, data, classes, licence; empty where nothing is known.
    """

    saved: SavedHead
    weights: str
    about: dict[str, Any]


def find(source: Path, head: str = "", seed: int | None = None) -> Found:
    """Find a model on this machine.

    Args:
        source: a head's file (`models/<head>-<seed>.safetensors`), the folder of a run (with
            `models/`, and `stores/` and `results/` where they are still there), or the folder of a
            released model.
        head: of a run; its first one if not given.
        seed: of a run's head; its first one if not given.

    Raises:
        FileNotFoundError: there is no such file or folder, or no such head in a run.
        ValueError: what is there is no model, or is damaged.
    """
    if not source.exists():
        raise FileNotFoundError(
            f"expected a head's file, a run's folder or a released model at {source}, got nothing"
            " there: check the path"
        )
    if source.is_dir() and not (source / CARD).is_file():
        return _of_run(source, load(_choose(source, head, seed)))
    found = Found(load(source), "pretrained", {}) if source.is_file() else _released(source)
    if head not in ("", found.saved.name) or seed not in (None, found.saved.seed):
        raise ValueError(
            f"expected {_wanted(head, seed)} in {source}, got {found.saved.name} (seed"
            f" {found.saved.seed}): a file and a released model hold one head, name another"
        )
    return found


def described(saved: SavedHead) -> dict[str, Any]:
    """Return what a card says of a head: all that its file does, but for the weights."""
    known = np.isfinite(saved.quantiles).all()
    note = {n: None if value != value else value for n, value in saved.note.items()}  # NaN
    return {
        "head": saved.name,
        "seed": saved.seed,
        **saved.sizes,
        "backbone": saved.backbone,
        "training": note,
        "quantiles": saved.quantiles.tolist() if known else None,
    }


def preprocessing(saved: SavedHead, source: str) -> Preprocessing:
    """Return how the backbone of a head sees pictures.

    Raises:
        ValueError: something is missing in what is told of the backbone, or is no sane value: the
            `source` may be a stranger's.
    """
    card = saved.backbone
    try:
        told, strings = card["preprocessing"], [card["backbone"], card["weights"]]
        mean, std = ((float(r), float(g), float(b)) for r, g, b in (told["mean"], told["std"]))
        made = Preprocessing(
            int(told["size"]), float(told["crop"]), told["interpolation"], mean, std
        )
        sane = 0 < made.size <= LARGEST and made.crop >= SMALLEST and min(std) > 0
        sane &= all(map(math.isfinite, (made.crop, *mean, *std)))
        sane &= made.interpolation in INTERPOLATIONS and card["precision"] in get_args(Precision)
        sane &= all(isinstance(string, str) for string in strings)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(
            f"expected {source} to tell its backbone, got {card}: {error!r}; train again"
        ) from error
    if not sane:
        raise ValueError(f"expected {source} to tell a backbone that can be, got {card}")
    return made


def _released(folder: Path) -> Found:
    card = _card(folder / CARD)
    path = folder / TENSORS
    if not path.is_file() or sha256(path) != card["sha256"]:
        raise ValueError(
            f"expected {path} with the SHA-256 {card['sha256'][:12]}... that {CARD} tells, got"
            f" {'another file' if path.is_file() else 'none'}: pull the model again"
        )
    saved = load(path)
    wrong = [name for name, value in described(saved).items() if card.get(name) != value]
    names, columns = card["about"].get("classes", []), len((saved.classifier or ((), ()))[1])
    wrong += [] if isinstance(names, list) and len(names) == columns else ["classes"]
    if wrong:
        raise ValueError(
            f"expected {CARD} to say what {path} does, got another {', '.join(wrong)}: release the"
            " model again, or pull it"
        )
    return Found(saved, "pretrained", card["about"])


def _card(path: Path) -> dict[str, Any]:
    """Read the card of a released model.

    Raises:
        ValueError: no card, or one of another format.
    """
    try:
        card = read_json(path)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected a card in {path}, got {error}: pull again") from error
    kind = card.get("format") if isinstance(card, dict) else type(card).__name__
    if kind != FORMAT:
        raise ValueError(f"expected a card of format {FORMAT}, got {kind} in {path}")
    if not (isinstance(card.get("sha256"), str) and isinstance(card.get("about"), dict)):
        raise ValueError(  # noqa: TRY004
            f"expected a card with sha256 and about in {path}: pull again"
        )
    return card


def _choose(run: Path, head: str, seed: int | None) -> Path:
    """Return the file of a run's head: the one asked for, or the first."""
    folder = run / "models" if (run / "models").is_dir() else run
    cards = {path: read_card(path) for path in sorted(folder.glob("*.safetensors"))}
    order = sorted(
        cards.items(), key=lambda item: (item[1]["note"].get("place", 0), item[1]["seed"])
    )
    fits = [
        path for path, card in order if head in ("", card["head"]) and seed in (None, card["seed"])
    ]
    if not fits:
        there = ", ".join(dict.fromkeys(card["head"] for _, card in order)) or "none"
        raise FileNotFoundError(
            f"expected {_wanted(head, seed)} in {folder}, got {there}: name one of those, or train"
        )
    return fits[0]


def _wanted(head: str, seed: int | None) -> str:
    return f"the head {head or 'of any name'}" + ("" if seed is None else f" (seed {seed})")


def _of_run(run: Path, saved: SavedHead) -> Found:
    """Add what a run's folder knows: each only where it is still there and of this very head."""
    folder = run if (run / "models").is_dir() else run.parent
    name, weights = saved.note.get("upstream", ""), "pretrained"
    store, losses = (folder / "stores" / f"{name}{end}.zarr" for end in ("", ".probe"))
    made = attributes(store)
    if made and made["content"]["weights"] == saved.backbone["weights"]:
        weights = _weights(made["made"]["recipe"]["weights"], folder)
    about = _measured(folder / "results", saved)
    if attributes(losses).get("fingerprint") == saved.note.get("probe", ""):
        opened = FeatureStore.open(losses)
        known = opened.classifier
        tensors = (torch.from_numpy(known.weight), torch.from_numpy(known.bias))
        saved = replace(saved, classifier=tensors)
        labels, classes = np.asarray(opened.array("classifier/label")[:]), opened.index.classes
        about["classes"] = [classes.get(label, str(label)) for label in labels.tolist()]
    return Found(saved, weights, about)


def _weights(told: str, folder: Path) -> str:
    """Return the place of a checkpoint, which a run's parameters tell from its folder."""
    return str(folder / told) if (folder / told).is_file() else told


def _measured(results: Path, saved: SavedHead) -> dict[str, Any]:
    """Return what evaluate found of a head, the mean over its seeds; nothing if it never ran.

    Raises:
        ValueError: the results are those of other heads, or damaged.
    """
    if not (results / "run.json").is_file():
        return {}
    try:
        run, metrics = read_json(results / "run.json"), read_json(results / "metrics.json")
        heads = {head["name"]: head for head in run["heads"]}
        own = heads.get(saved.name, {"seeds": [], "tensors": []})
        measured = dict(zip(own["seeds"], own["tensors"], strict=True))
        data = {name: run[name] for name in ("upstream", "sets", "loss", "versions", "machine")}
        found = {n: by_head[saved.name] for n, by_head in metrics.items() if saved.name in by_head}
        found.setdefault("r1", metrics["r1"]["backbone"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"expected the results of evaluate in {results}, got {error!r}: run evaluate again"
        ) from error
    if measured.get(saved.seed) != tensors_hash(saved.head.state_dict()):
        raise ValueError(
            f"expected results of {saved.name} (seed {saved.seed}) in {results}, got those of other"
            " heads: run evaluate again"
        )
    return {"metrics": found, "seeds": own["seeds"], "data": data}


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write the card beside `folder`'s tensors, whose hash it names."""
    write_json(folder / CARD, {"format": FORMAT, "sha256": sha256(folder / TENSORS)} | card)
