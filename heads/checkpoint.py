"""A head on disk: safetensors with all that is needed to use it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from askance.heads.catalogue import find
from askance.heads.head import Head, Setup
from askance.pipeline.artifacts import atomic

FORMAT = "askance-head/1"
QUANTILES = 1001


@dataclass(frozen=True)
class SavedHead:
    """A head, and what it was trained on.

    `quantiles` are the 0, 0.1, ..., 100 % quantiles of the uncertainty over upstream rows;
    `backbone` names the network, its weights' hash and its preprocessing; `note` is the rest.
    """

    name: str
    seed: int
    head: Head
    quantiles: Float[np.ndarray, "1001"]
    backbone: dict[str, Any]
    note: dict[str, Any]

    def percentile(self, uncertainty: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return the share of upstream rows that are more certain, ties counted half; 0 to 1."""
        scale = np.linspace(0, 1, QUANTILES)
        first, last = (np.searchsorted(self.quantiles, uncertainty, s) for s in ("left", "right"))
        tied = scale[np.minimum(first, QUANTILES - 1)] / 2 + scale[np.maximum(last, 1) - 1] / 2
        return np.where(last > first, tied, np.interp(uncertainty, self.quantiles, scale))

    def check_backbone(self, other: dict[str, Any], where: str) -> None:
        """Refuse embeddings of another backbone.

        Raises:
            ValueError: the network, its weights, its preprocessing or its precision differ.
        """
        wrong = [n for n, value in self.backbone.items() if other.get(n) != value]
        if wrong:
            pairs = "; ".join(f"{n}: {self.backbone[n]!r} against {other.get(n)!r}" for n in wrong)
            raise ValueError(
                f"expected embeddings of the backbone that head {self.name} was trained on, got"
                f" {where} ({pairs}): extract again with that backbone, or train a new head"
            )


def quantiles(uncertainty: Float[Tensor, " n"]) -> Float[np.ndarray, "1001"]:
    """Return the 1,001 quantiles that turn an uncertainty into a percentile.

    Raises:
        ValueError: an uncertainty is NaN or infinite.
    """
    bad = int((~uncertainty.isfinite()).sum())
    if bad:
        raise ValueError(f"expected finite uncertainties, got {bad} of {len(uncertainty)} others")
    return np.quantile(uncertainty.double().numpy(), np.linspace(0, 1, QUANTILES))


def save(path: Path, saved: SavedHead, setup: Setup) -> None:
    """Write a head atomically."""
    card = {
        "format": FORMAT,
        "head": saved.name,
        "seed": saved.seed,
        "dim": setup.dim,
        "width": setup.width,
        "depth": setup.depth,
        "classes": len(setup.bias),
        "backbone": saved.backbone,
        "note": saved.note,
    }
    tensors = {f"head.{name}": t.contiguous() for name, t in saved.head.state_dict().items()}
    tensors["quantiles"] = torch.from_numpy(saved.quantiles)
    content = serialise(tensors, metadata={"askance": json.dumps(card)})
    with atomic(path) as temporary:
        temporary.write_bytes(content)  # save_file would hide the reason of a failed write


def load(path: Path) -> SavedHead:
    """Read a head; no code of the file is ever run.

    Raises:
        ValueError: not a head of this format.
        FileNotFoundError: no such file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"expected a head in {path}, got no such file: train writes these")
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads((file.metadata() or {}).get("askance", "{}"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"expected a head in {path}, got a damaged file: {error}") from error
    if card.get("format") != FORMAT:
        raise ValueError(f"expected a head of format {FORMAT}, got {path}: train writes these")
    try:
        return _assembled(card, tensors)
    except (KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"expected a whole head in {path}, got {error!r}") from error


def _assembled(card: dict[str, Any], tensors: dict[str, Tensor]) -> SavedHead:
    state = {n.removeprefix("head."): t for n, t in tensors.items() if n.startswith("head.")}
    weight, bias = torch.zeros(card["classes"], card["dim"]), torch.zeros(card["classes"])
    head = find(card["head"])(Setup(card["dim"], card["width"], card["depth"], weight, bias))
    head.load_state_dict(state)
    return SavedHead(
        name=card["head"],
        seed=card["seed"],
        head=head.eval().requires_grad_(False),
        quantiles=tensors["quantiles"].numpy(),
        backbone=card["backbone"],
        note=card["note"],
    )
