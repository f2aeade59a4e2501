"""A head on disk: safetensors with all that is needed to use it."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
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
from askance.heads.percentile import percentile
from askance.pipeline.artifacts import atomic

FORMAT = "askance-head/1"
QUANTILES = 1001
SIZES = ("dim", "width", "depth", "classes")
LARGEST = {"dim": 10**6, "width": 10**6, "depth": 1000, "classes": 10**6}  # from a stranger's file
FIELDS = {"head": str, "seed": int, **dict.fromkeys(SIZES, int), "backbone": dict, "note": dict}
WEIGHT, BIAS = "classifier.weight", "classifier.bias"


@dataclass(frozen=True)
class SavedHead:
    """A head, and what it was trained on.

    `quantiles` are the 0, 0.1, ..., 100 % quantiles of the uncertainty over upstream rows, NaN
    where no such rows are known; `sizes` are its setup's; `backbone` names the network, its
    weights' hash, its preprocessing and its precision; `note` is the rest. `classifier` has the
    weight (c, d) and bias (c,) that the losses came from, where they are kept with the head.
    """

    name: str
    seed: int
    head: Head
    quantiles: Float[np.ndarray, "1001"]
    sizes: dict[str, int]
    backbone: dict[str, Any]
    note: dict[str, Any]
    classifier: tuple[Tensor, Tensor] | None = None

    def percentile(self, uncertainty: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """Return the share of upstream rows that are more certain, ties counted half; 0 to 1."""
        values = torch.from_numpy(np.asarray(uncertainty))
        return percentile(torch.from_numpy(self.quantiles), values).numpy()

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


def tensors_hash(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 over names, shapes and values: what tells a head from others."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return hashlib.sha256(serialise(whole)).hexdigest()


def save(path: Path, saved: SavedHead) -> None:
    """Write a head atomically."""
    card = {
        "format": FORMAT,
        "head": saved.name,
        "seed": saved.seed,
        **saved.sizes,
        "backbone": saved.backbone,
        "note": saved.note,
    }
    tensors = {f"head.{name}": t.contiguous() for name, t in saved.head.state_dict().items()}
    tensors["quantiles"] = torch.from_numpy(saved.quantiles)
    if saved.classifier is not None:
        tensors[WEIGHT], tensors[BIAS] = saved.classifier
    content = serialise(tensors, metadata={"askance": json.dumps(card)})
    with atomic(path) as temporary:
        temporary.write_bytes(content)  # save_file would hide the reason of a failed write


def load(path: Path) -> SavedHead:
    """Read a head; no code of the file is ever run.

    Raises:
        ValueError: not a head of this format, or one that is damaged or not finite.
        FileNotFoundError: no such file.
    """
    with _opened(path) as (card, file):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    try:
        return _assembled(card, tensors)
    except (KeyError, RuntimeError, TypeError) as error:
        raise ValueError(f"expected a whole head in {path}, got {error!r}") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def read_card(path: Path) -> dict[str, Any]:
    """Read what a head's file says of itself, without its tensors; raises as `load`."""
    with _opened(path) as (card, _):
        return card


@contextmanager
def _opened(path: Path) -> Iterator[tuple[dict[str, Any], Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"expected a head in {path}, got no such file: train writes these")
    try:
        with safe_open(path, framework="pt") as file:
            yield _card(path, (file.metadata() or {}).get("askance", "{}")), file
    except SafetensorError as error:
        raise ValueError(f"expected a head in {path}, got a damaged file: {error}") from error


def _card(path: Path, text: str) -> dict[str, Any]:
    try:
        card = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"expected a head in {path}, got a damaged file: {error}") from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise ValueError(f"expected a head of format {FORMAT}, got {path}: train writes these")
    wrong = [name for name, kind in FIELDS.items() if not isinstance(card.get(name), kind)]
    wrong += [name for name in SIZES if name not in wrong and not 0 <= card[name] <= LARGEST[name]]
    if wrong:
        raise ValueError(f"expected a whole head in {path}, got no usable {', '.join(wrong)}")
    return card


def _built(name: str, sizes: dict[str, int]) -> Head:
    weight, bias = torch.zeros(sizes["classes"], sizes["dim"]), torch.zeros(sizes["classes"])
    return find(name)(Setup(sizes["dim"], sizes["width"], sizes["depth"], weight, bias))


def _check(tensors: dict[str, Tensor], dim: int) -> None:
    """Raise a ValueError unless weights are finite, quantiles rise, and a classifier fits."""
    for name, tensor in tensors.items():
        if name != "quantiles" and not tensor.isfinite().all():
            raise ValueError(f"expected finite weights, got NaN or infinity in {name}: train again")
    scale = tensors["quantiles"]
    rising = bool((scale.diff() >= 0).all() or scale.isnan().all())
    if (scale.shape, scale.dtype) != ((QUANTILES,), torch.float64) or not rising:
        raise ValueError(f"expected {QUANTILES} rising quantiles, got others: train again")
    if WEIGHT in tensors:
        weight, bias = tensors[WEIGHT], tensors[BIAS]
        if weight.ndim != 2 or weight.shape[1] != dim or bias.shape != weight.shape[:1]:
            shapes = f"{tuple(weight.shape)} and {tuple(bias.shape)}"
            raise ValueError(f"expected a classifier of {dim} columns, got {shapes}: train again")


def _assembled(card: dict[str, Any], tensors: dict[str, Tensor]) -> SavedHead:
    state = {n.removeprefix("head."): t for n, t in tensors.items() if n.startswith("head.")}
    sizes = {name: card[name] for name in SIZES}
    with torch.device("meta"):  # without memory: sizes that the tensors lack can't ask for any
        expected = _built(card["head"], sizes).state_dict()
    shapes = [{(n, tuple(t.shape)) for n, t in named.items()} for named in (expected, state)]
    if odd := sorted(shapes[0] ^ shapes[1]):
        raise ValueError(
            f"expected tensors of a head {card['head']} of {sizes}, got others, such as {odd[0]}:"
            " train again"
        )
    head = _built(card["head"], sizes)
    head.load_state_dict(state)
    _check(tensors, sizes["dim"])
    return SavedHead(
        name=card["head"],
        seed=card["seed"],
        head=head.eval().requires_grad_(False),
        quantiles=tensors["quantiles"].numpy(),
        sizes=sizes,
        backbone=card["backbone"],
        note=card["note"],
        classifier=(tensors[WEIGHT], tensors[BIAS]) if WEIGHT in tensors else None,
    )
