"""A head of the original program, out of its checkpoint; no code of the file is ever run.

Such a `*.pth.tar` is a pickled dictionary: `state_dict` has the whole model, the head under
`unc_module.unc_module.<layer>`, the backbone under `model`; beside it `arch`, `epoch`, `args` and
the state of an optimiser.
"""

import argparse
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from askance.heads.head import Setup
from askance.heads.ranking import Ranking
from askance.pipeline.artifacts import sha256

LAYER = re.compile(r"((?:.*\.)?)unc_module\.unc_module\.(\d+\.(?:weight|bias))", re.DOTALL)
LARGEST = 4096  # seed, or side of pictures, that a stranger's file may tell


@dataclass(frozen=True)
class Published:
    """A head as the original program saved it.

    `sizes` are its setup's; `backbone` has the tensors of the network it was trained on, by their
    names there, where the file holds them; `seed` and `side` (of the pictures, in pixels) are those
    of its training, 0 where it doesn't tell; `origin` says which file it is.
    """

    head: Ranking
    sizes: dict[str, int]
    backbone: dict[str, Tensor]
    seed: int
    side: int
    origin: dict[str, str | int]


def read(path: Path) -> Published:
    """Read a checkpoint of the original program's `pred-net`.

    Raises:
        ValueError: not such a checkpoint, one with code in it, a damaged or not a finite one.
        FileNotFoundError: no such file.
    """
    checkpoint = _unpickled(path)
    state = checkpoint.get("state_dict")
    items = state.items() if isinstance(state, dict) else ()
    tensors = {str(name): tensor for name, tensor in items if isinstance(tensor, Tensor)}
    found = [match for name in tensors if (match := LAYER.fullmatch(name))]
    prefixes = {match[1] for match in found}
    if len(prefixes) != 1:
        raise ValueError(
            f"expected one head (unc_module.unc_module.0.weight, ...) in the state_dict of {path},"
            f" got {len(prefixes)}: of the original's heads, those of --unc-module=pred-net can be"
            " imported"
        )
    lead = f"{prefixes.pop()}model."
    head, sizes = _assembled({match[2]: tensors[match[0]] for match in found}, path)
    args = checkpoint.get("args")
    said = vars(args) if isinstance(args, argparse.Namespace) else {}
    origin: dict[str, str | int] = {"file": path.name, "sha256": sha256(path)}
    for name in ("arch", "epoch"):
        if isinstance(told := checkpoint.get(name), str | int):
            origin[name] = told
    return Published(
        head,
        sizes,
        backbone={n.removeprefix(lead): t for n, t in tensors.items() if n.startswith(lead)},
        seed=_number(said, "seed"),
        side=_number(said, "img_size"),
        origin=origin,
    )


def _unpickled(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint of the original program, got no {path}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever an unpickler comes up with
        lines = str(error).splitlines() or [""]
        reason = next((line for line in lines if "unsupported" in line.lower()), lines[0])
        raise ValueError(
            f"expected a checkpoint of the original program in {path}, without code in it, got"
            f" {type(error).__name__}: {reason[:300]}"
        ) from error
    return found if isinstance(found, dict) else {}


def _assembled(layers: dict[str, Tensor], path: Path) -> tuple[Ranking, dict[str, int]]:
    """Build the head that the layers are of: our layers have the same numbers as theirs."""
    try:
        width, dim = layers["0.weight"].shape
        nothing = torch.zeros(0, dim), torch.zeros(0)  # it reads no classifier
        setup = Setup(dim, width, len(layers) // 2 - 1, *nothing)
        head = Ranking(setup)
        head.layers.load_state_dict(layers)
    except (KeyError, RuntimeError, ValueError) as error:
        shapes = {name: tuple(tensor.shape) for name, tensor in layers.items()}
        raise ValueError(
            f"expected linear layers 0, 2, ..., each with weight and bias, the last one to a single"
            f" number, as the head in {path}, got {shapes}"
        ) from error
    bad = [name for name, tensor in head.layers.named_parameters() if not tensor.isfinite().all()]
    if bad:
        raise ValueError(f"expected finite weights in {path}, got NaN or infinity in {bad[0]}")
    return head.eval().requires_grad_(False), setup.sizes


def _number(said: dict[str, Any], name: str) -> int:
    value = said.get(name)
    return value if type(value) is int and 0 < value <= LARGEST else 0
