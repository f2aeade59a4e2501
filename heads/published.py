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


@dataclass(frozen=True)
class Published:
    """A head as the original program saved it.

    `dim`, `width` and `depth` are its layers'; `backbone` the tensors of the network it was trained
    on, where the file has them; `seed` and `side` (of the pictures, in pixels; 0: not told) are
    those of its training; `origin` says which file it is.
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
    tensors = state if isinstance(state, dict) else {}
    found = {m: tensors[name] for name in tensors if (m := LAYER.fullmatch(str(name)))}
    layers = {match[2]: tensor for match, tensor in found.items()}
    prefixes = {match[1] for match in found}
    if len(prefixes) != 1:
        raise ValueError(
            f"expected one head (unc_module.unc_module.0.weight, ...) in the state_dict of {path},"
            f" got {len(prefixes)}: of the original's heads, those of --unc-module=pred-net can be"
            " imported"
        )
    lead = f"{prefixes.pop()}model."
    head, sizes = _assembled(layers, path)
    args = checkpoint.get("args")
    said = vars(args) if isinstance(args, argparse.Namespace) else {}
    told = {name: checkpoint.get(name) for name in ("arch", "epoch")}
    return Published(
        head,
        sizes,
        backbone={n.removeprefix(lead): t for n, t in tensors.items() if n.startswith(lead)},
        seed=_number(said, "seed"),
        side=_number(said, "img_size"),
        origin={"file": path.name, "sha256": sha256(path)}
        | {name: value for name, value in told.items() if isinstance(value, str | int)},
    )


def _unpickled(path: Path) -> dict[Any, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"expected a checkpoint of the original program, got no {path}")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever an unpickler comes up with
        lines = str(error).splitlines() or [""]
        reason = next((line for line in lines if "Unsupported" in line), lines[0])
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
    except (AttributeError, KeyError, RuntimeError, ValueError) as error:
        shapes = {name: tuple(getattr(tensor, "shape", ())) for name, tensor in layers.items()}
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
    return value if isinstance(value, int) and value > 0 else 0
