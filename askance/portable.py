"""A model as one file that other programs run: ONNX, or a program of torch.export.

Comes in: a model, and pictures to check the file with. Goes out: the file, which takes its name
only if it answers as the model does, and how far its answers are from the model's.
"""

import copy
import json
import math
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from askance.agreement import Difference, Pixels, Precision, Run, difference
from askance.features.backbone import Backbone
from askance.model import Model

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

FORMAT = "askance-export/1"
OPSET = 18  # torch's exporter writes none before it, and converts to those after it
INPUT, OUTPUTS = "pixels", ("embedding", "uncertainty", "percentile")
DEPRECATED = r"`isinstance\(treespec, LeafSpec\)`"  # which torch calls itself
CHANNELS_LAST = "No complete tensor found in the group"  # of weights in this layout, saved rightly
SCOPE = "pkg.torch.onnx.name_scopes"  # where torch tells which modules a node is of


class Graph(nn.Module):
    """What a file computes: pixels, which it normalises, to three outputs in float32.

    It is a copy of the model, with the network in float32 or float16. A head trained on embeddings
    of bfloat16 products gets those of float32 here, whose rounding is finer.
    """

    def __init__(self, model: Model, precision: Precision = "float32") -> None:
        super().__init__()
        own = copy.deepcopy(model).requires_grad_(False).eval().cpu()
        own.backbone = Backbone(own.backbone.network, own.backbone.preprocessing, "float32")
        self.model = own.to(torch.float16 if precision == "float16" else torch.float32)

    def forward(
        self, pixels: Pixels
    ) -> tuple[Float32[Tensor, "n d"], Float32[Tensor, " n"], Float32[Tensor, " n"]]:
        """Return embedding, uncertainty and percentile."""
        embedding, uncertainty = self.model(pixels)
        return embedding, uncertainty.float(), self.model.percentile(uncertainty).float()


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore what torch's exporters warn of their own doing."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", DEPRECATED, FutureWarning)
        warnings.filterwarnings("ignore", CHANNELS_LAST, UserWarning)
        yield


@quiet()
def write_torch(
    model: Model, path: Path, pixels: Pixels, precision: Precision = "float32"
) -> Difference:
    """Write a `.pt2` file: `torch.export.load(path).module()(pixels)` needs nothing but torch.

    What is told of the model is in its extra file `askance.json`.

    Args:
        model: is left as it is.
        path: of the file, which is written whole or not at all.
        pixels: of pictures to check it with, 3 at least.
        precision: of the network, float32 or float16.

    Raises:
        ValueError: a model that can't be traced, answers that are too far off, or int8.
    """
    if precision == "int8":
        raise ValueError("expected float32 or float16 for torch.export, got int8: write ONNX")
    with _whole(path) as temporary:
        about = {"askance.json": _told(model, precision)}
        torch.export.save(_traced(model, precision), temporary, extra_files=about)
        return _checked(running(torch.export.load(temporary).module()), model, pixels, precision)


@quiet()
def write_onnx(
    model: Model, path: Path, pixels: Pixels, precision: Precision = "float32"
) -> Difference:
    """Write an ONNX file; where the weights are above 1.5 GiB, they lie beside it in `<name>.data`.

    What is told of the model is in its metadata, under `askance`.

    Args:
        model: is left as it is.
        path: of the file, which is written whole or not at all.
        pixels: of pictures to check it with, 3 at least.
        precision: of the network; int8 is of the weights of its matrix products, and of what they
            are multiplied with, by the range that has in each batch.

    Raises:
        ValueError: a model that ONNX can't express, int8 of a network without matrix products, or
            answers that are too far off; no onnxruntime or onnxscript.
    """
    check_installed()
    with _whole(path) as temporary:
        program = _translated(model, precision)
        program.model.metadata_props["askance"] = _told(model, precision, opset=OPSET)
        if precision == "int8":
            _quantise(program, temporary, str(model.saved.backbone["backbone"]))
        else:
            program.save(temporary)
        opened = session(temporary, torch.get_num_threads())
        return _checked(
            lambda pixels: opened.run(OUTPUTS, {INPUT: pixels.numpy()}), model, pixels, precision
        )


def check_installed() -> None:
    """Raise a ValueError unless all that writes and checks ONNX files is there."""
    try:
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401 - torch needs it
    except ImportError as error:
        raise ValueError(
            f"expected onnxruntime and onnxscript, got none ({error}): pip install 'askance[onnx]'"
        ) from error


def session(path: Path, threads: int) -> "InferenceSession":
    """Open an ONNX file on the CPU; its threads don't spin, which would slow others beside it."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _traced(model: Model, precision: Precision) -> ExportedProgram:
    graph = Graph(model, precision)
    with _expressible(model, "torch.export"):
        program = torch.export.export(graph, _example(model), dynamic_shapes=({0: Dim("n")},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths and lines of this machine
    return program


def _translated(model: Model, precision: Precision) -> torch.onnx.ONNXProgram:
    traced = _traced(model, precision)
    with _expressible(model, "ONNX"):
        program = torch.onnx.export(
            traced.run_decompositions({torch.ops.aten.searchsorted.Tensor: _searchsorted}),
            _example(model),
            input_names=[INPUT],
            output_names=OUTPUTS,
            opset_version=OPSET,
            dynamic_shapes=({0: "n"},),
            verbose=False,
        )
    assert program is not None, "expected a program of torch.onnx.export, got none"
    return program


def _searchsorted(
    rising: Float[Tensor, " q"],
    values: Float[Tensor, " n"],
    *,
    right: bool = False,
    **_: Any,  # noqa: ANN401 - the operator's other arguments, at their defaults
) -> Tensor:
    """Find the places of values among rising ones by counting, which ONNX can."""
    smaller: Bool[Tensor, "n q"] = rising <= values[:, None] if right else rising < values[:, None]
    return smaller.sum(1)


def _quantise(program: torch.onnx.ONNXProgram, path: Path, backbone: str) -> None:
    """Write the program with the matrix products of its network, not those of its head, in int8."""
    from onnxruntime.quantization import quantize_dynamic

    products = [
        node.name
        for node in program.model.graph
        if node.op_type == "MatMul" and "'model.backbone'" in node.metadata_props[SCOPE]
    ]
    if not products:
        raise ValueError(
            f"expected a network of matrix products, as a ViT is, for int8, got {backbone}:"
            " convolutions would be slower so, and far off; take float32 or float16"
        )
    # Else it warns that shapes are to be inferred and constants folded, as torch has done.
    program.model.metadata_props["onnx.quant.pre_process"] = "onnxruntime.quant"
    with TemporaryDirectory(dir=path.parent) as folder:
        program.save(whole := Path(folder, "float32.onnx"))
        quantize_dynamic(
            whole,
            path,
            per_channel=True,
            reduce_range=True,  # to 7 bits: processors without VNNI overflow at 8
            nodes_to_quantize=products,
            use_external_data_format=len(list(whole.parent.iterdir())) > 1,
        )


def _checked(run: Run, model: Model, pixels: Pixels, precision: Precision) -> Difference:
    graph = Graph(model)
    found = difference(run, running(graph), graph.model, pixels)
    found.check(precision)
    return found


def running(module: nn.Module) -> Run:
    """Return what asks a torch module for its outputs, as arrays."""

    def run(pixels: Pixels) -> list[np.ndarray]:
        return [output.numpy() for output in module(pixels)]

    return run


def _told(model: Model, precision: Precision, **more: int) -> str:
    """Return what is told of the model, and of the pixels that it takes, as JSON."""
    own = model.preprocess.preprocessing
    pixels = (
        f"RGB, uint8, (n, 3, {own.size}, {own.size}): the shorter side resized to"
        f" {math.floor(own.size / own.crop)}, {own.interpolation} and antialiased as Pillow does,"
        f" then the centre cut out; not normalised"
    )
    card = {name: value for name, value in model.card().items() if name != "quantiles"}
    about = {"format": FORMAT, "precision": precision, "pixels": pixels, **more, **card}
    return json.dumps(about, allow_nan=False)


def _example(model: Model) -> tuple[Pixels]:
    side = model.preprocess.preprocessing.size
    return (torch.zeros(2, 3, side, side, dtype=torch.uint8),)


@contextmanager
def _expressible(model: Model, form: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever torch comes up with
        first = re.split(r"\n|\. ", str(error.__cause__ or error).strip())[0]
        raise ValueError(
            f"expected a model that {form} can express, got head {model.saved.name} on"
            f" {model.saved.backbone['backbone']} ({first[:200]}): export it in another format, or"
            " another head"
        ) from error


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """Yield a path of the same name in a temporary folder, whose files take their places at last.

    As `atomic`, for a file that may have another one beside it, and knows that by its name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=f".{path.name}.", suffix=".partial", dir=path.parent) as folder:
        yield Path(folder, path.name)
        for file in sorted(Path(folder).iterdir(), reverse=True):  # the one that knows it, last
            file.replace(path.with_name(file.name))
