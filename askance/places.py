"""Where a model lies: a head's file, a run's folder, a released folder.

Comes in: a path. Goes out: the head, and what is known around it: the weights of its backbone, its
classifier, and the card that says how it was trained and measured.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from askance.features.store import FeatureStore, attributes
from askance.heads.checkpoint import SavedHead, load, read_note
from askance.pipeline.artifacts import read_json, sha256

FORMAT = "askance-model/1"
TENSORS, CARD = "model.safetensors", "config.json"


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
    if source.is_file():
        return Found(load(source), "pretrained", {})
    if (source / CARD).is_file():
        return _released(source)
    if not source.is_dir():
        raise FileNotFoundError(
            f"expected a head's file, a run's folder or a released model, got no {source}"
        )
    return _of_run(source, load(_choose(source, head, seed)))


def _released(folder: Path) -> Found:
    try:
        card = read_json(folder / CARD)
        kind = card.get("format")
    except (ValueError, AttributeError) as error:
        raise ValueError(f"expected a card in {folder / CARD}, got {error}: pull again") from error
    if kind != FORMAT:
        raise ValueError(f"expected a card of format {FORMAT}, got {kind} in {folder / CARD}")
    path = folder / TENSORS
    if not path.is_file() or sha256(path) != card["sha256"]:
        raise ValueError(
            f"expected {path} with the SHA-256 {card['sha256'][:12]}... that {CARD} tells, got"
            f" {'another file' if path.is_file() else 'none'}: pull the model again"
        )
    return Found(load(path), "pretrained", card["about"])


def _choose(run: Path, head: str, seed: int | None) -> Path:
    """Return the file of a run's head: the one asked for, or the first."""
    folder = run if any(run.glob("*.safetensors")) else run / "models"
    notes = {path: read_note(path) for path in sorted(folder.glob("*.safetensors"))}
    order = sorted(notes, key=lambda path: (notes[path].get("place", 0), _seed(path)))
    fits = [path for path in order if head in ("", _name(path)) and seed in (None, _seed(path))]
    if not fits:
        there = ", ".join(path.stem for path in order) or "none"
        wanted = f"the head {head or 'of any name'}" + ("" if seed is None else f" (seed {seed})")
        raise FileNotFoundError(f"expected {wanted} in {folder}, got {there}: run train")
    return fits[0]


def _name(path: Path) -> str:
    return path.stem.rpartition("-")[0]


def _seed(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


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
        ValueError: the results are those of other heads.
    """
    if not (results / "run.json").is_file():
        return {}
    run, metrics = read_json(results / "run.json"), read_json(results / "metrics.json")
    same = all(run[name] == saved.backbone[name] for name in saved.backbone)
    trained = all(saved.note[name] == value for name, value in run["training"].items())
    seeds = {head["name"]: head["seeds"] for head in run["heads"]}
    if not (same and trained and saved.seed in seeds.get(saved.name, [])):
        raise ValueError(
            f"expected results of {saved.name} (seed {saved.seed}) in {results}, got those of other"
            " heads: run evaluate again"
        )
    found = {n: by_head[saved.name] for n, by_head in metrics.items() if saved.name in by_head}
    found.setdefault("r1", metrics["r1"]["backbone"])
    data = {name: run[name] for name in ("upstream", "sets", "loss", "versions", "machine")}
    return {"metrics": found, "seeds": seeds[saved.name], "data": data}


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write the card beside `folder`'s tensors, whose hash it names."""
    card = {"format": FORMAT, "sha256": sha256(folder / TENSORS)} | card
    (folder / CARD).write_text(json.dumps(card, indent=1, allow_nan=False) + "\n")
