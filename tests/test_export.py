"""Exported files: they answer as the model does, tell what they are, or are not written at all."""

import json
import sys
import zipfile

import numpy as np
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.export import Dim
from torch.onnx._internal.exporter import _onnx_program
from typer.testing import CliRunner

from askance import export, portable
from askance import model as model_module
from askance.agreement import Difference, difference
from askance.features.backbone import Backbone, load_backbone, timm
from askance.features.views import Preprocessing
from askance.heads.catalogue import HEADS
from askance.heads.checkpoint import SavedHead, quantiles, save
from askance.heads.head import Head, Setup
from askance.model import Model

onnx = pytest.importorskip("onnx")
onnx_ir = pytest.importorskip("onnx_ir")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

SIDE, DIM = 32, 16
KINDS = ("ranking", "entropy", "norm", "hetxl-det")  # of heads that ONNX expresses
app = typer.Typer()
app.command()(export.main)


class Small(nn.Module):
    """A network that is traced in no time; it has no product of matrices in three dimensions."""

    head_hidden_size = DIM

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3 * 16, DIM)

    def forward_features(self, images):
        return nn.functional.avg_pool2d(images, SIDE // 4).flatten(1)

    def forward_head(self, features, pre_logits):
        return self.linear(features).tanh()


def setup(dim=DIM):
    torch.manual_seed(0)
    return Setup(dim, 8, 2, torch.randn(3, dim), torch.randn(3))


def build(head="ranking", network=None):
    torch.manual_seed(1)
    preprocessing = Preprocessing(SIDE, 0.9, "bicubic", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    backbone = Backbone(network or Small(), preprocessing, "bfloat16")
    sizes = setup(backbone.width)
    made = HEADS[head](sizes) if isinstance(head, str) else head
    scale = quantiles(made(torch.randn(500, backbone.width)).detach())
    card = {"backbone": "small", "weights": "ab", "precision": "bfloat16"}
    return Model(backbone, SavedHead("ranking", 3, made, scale, sizes.sizes, card, {}))


class Every(Head):
    """The uncertainties of several heads, which are traced in the time of one."""

    def __init__(self, names):
        super().__init__()
        sizes = setup()
        self.heads = nn.ModuleDict({name: HEADS[name](sizes).eval() for name in names})
        self.requires_grad_(False)

    def forward(self, embedding):
        return torch.stack([head(embedding) for head in self.heads.values()], dim=1)


class Sum(Every):
    """A head that is right only if each of several is."""

    def forward(self, embedding):
        return super().forward(embedding).sum(1)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def expected(model, pixels):
    """Return what a file should answer: the model's own, with products in float32."""
    model.backbone.precision = "float32"
    embedding, uncertainty = model(pixels)
    model.backbone.precision = "bfloat16"
    return [x.numpy() for x in (embedding, uncertainty, model.percentile(uncertainty).float())]


def assert_answers(got, wanted, tolerance=1e-4):
    for one, other in zip(got, wanted, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance)


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(0, 256, (40, 3, SIDE, SIDE), dtype=torch.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Return a model, the folder of what the command wrote of it, and what it printed."""
    model = build(Sum(KINDS))
    folder = tmp_path_factory.mktemp("exported") / "new"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_module, "load", lambda *_, **__: model)
        done = run("--onnx", folder / "model.onnx", "--torch", folder / "model.pt2")
    assert done.exit_code == 0, done.output
    return model, folder, done.stdout


def test_both_files_answer_as_the_model_in_batches_of_any_size(exported, pixels):
    model, folder, _ = exported
    session = portable.session(folder / "model.onnx", 1)
    module = torch.export.load(folder / "model.pt2").module()
    for size in (1, 3, 40):
        wanted = expected(model, pixels[:size])
        assert_answers(session.run(None, {"pixels": pixels[:size].numpy()}), wanted)
        assert_answers([x.numpy() for x in module(pixels[:size])], wanted)


@given(st.lists(st.integers(0, 9), min_size=1), st.lists(st.integers(-1, 10)))
def test_counting_finds_the_places_that_searching_does(rising, values):
    rising, values = torch.tensor(sorted(rising)).double(), torch.tensor(values).double()
    for right in (False, True):
        got = portable._searchsorted(rising, values, right=right)
        torch.testing.assert_close(got, torch.searchsorted(rising, values, right=right))


def test_the_onnx_file_names_what_comes_in_and_goes_out(exported):
    session = portable.session(exported[1] / "model.onnx", 1)
    named = [(x.name, x.shape, x.type) for x in session.get_inputs() + session.get_outputs()]
    assert named == [
        ("pixels", ["n", 3, SIDE, SIDE], "tensor(uint8)"),
        ("embedding", ["n", DIM], "tensor(float)"),
        ("uncertainty", ["n"], "tensor(float)"),
        ("percentile", ["n"], "tensor(float)"),
    ]


def test_both_files_tell_the_model_and_its_pixels(exported):
    model, folder, _ = exported
    written = onnx.load(folder / "model.onnx")
    assert [(each.domain, each.version) for each in written.opset_import] == [("", 18)]
    about = json.loads({each.key: each.value for each in written.metadata_props}["askance"])
    files = {"askance.json": ""}
    torch.export.load(folder / "model.pt2", extra_files=files)
    assert json.loads(files["askance.json"]) == {n: v for n, v in about.items() if n != "opset"}
    assert about["format"] == "askance-export/1"
    assert (about["precision"], about["opset"]) == ("float32", 18)
    assert about["pixels"] == (
        "RGB, uint8, (n, 3, 32, 32): the shorter side resized to 35, bicubic and antialiased as"
        " Pillow does, then the centre cut out; not normalised"
    )
    card = {name: value for name, value in model.card().items() if name != "quantiles"}
    assert {name: about[name] for name in card} == card


def test_neither_file_tells_a_path_of_the_machine(exported):
    with zipfile.ZipFile(exported[1] / "model.pt2") as archive:
        parts = [archive.read(name) for name in archive.namelist()]
    for content in (*parts, (exported[1] / "model.onnx").read_bytes()):
        assert b"site-packages" not in content
        assert portable.__file__.rpartition("/")[0].encode() not in content


def test_the_command_says_what_it_wrote_and_how_it_was_checked(exported):
    _, folder, printed = exported
    first, file, checked, *_ = printed.splitlines()
    assert first == "ranking (seed 3) on small, in float32; the head was trained in bfloat16"
    assert file == f"{folder / 'model.onnx'}: 0.1 MB, opset 18"
    assert checked.startswith("checked   32 pictures, against torch in float32: embedding ")
    assert printed.count("checked") == 2
    assert sorted(path.name for path in folder.iterdir()) == ["model.onnx", "model.pt2"]


def test_every_head_is_a_program_of_torch():
    module = Every(HEADS)
    example = torch.randn(2, DIM)
    program = torch.export.export(module, (example,), dynamic_shapes=({0: Dim("n")},)).module()
    for rows in (torch.randn(1, DIM), torch.randn(70, DIM)):
        torch.testing.assert_close(program(rows), module(rows), rtol=1e-4, atol=1e-5)


def test_a_head_that_onnx_can_not_express_is_named_and_leaves_the_old_file(pixels, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    message = (
        "expected a model that ONNX can express, got head ranking on small .*cholesky.*: export"
        " it in another format, or another head"
    )
    with pytest.raises(ValueError, match=message):
        portable.write_onnx(build("gp"), path, pixels)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_a_head_that_looks_at_the_numbers_can_not_be_traced(pixels, tmp_path):
    class Choosing(HEADS["norm"]):
        def forward(self, embedding):
            return super().forward(embedding) if embedding.sum() > 0 else embedding[:, 0]

    with pytest.raises(ValueError, match="expected a model that torch.export can express, got"):
        portable.write_torch(build(Choosing(setup())), tmp_path / "model.pt2", pixels)
    assert not list(tmp_path.iterdir())


def test_int8_of_a_large_model_is_of_the_products_of_its_network_alone(
    pixels, tmp_path, monkeypatch
):
    monkeypatch.setattr(_onnx_program, "_LARGE_MODEL_THRESHOLD", 0)
    vit = timm.create_model("test_vit", num_classes=0, img_size=SIDE, depth=1)
    model, path = build(network=vit), tmp_path / "model.onnx"
    found = portable.write_onnx(model, path, pixels, "int8")
    assert 1e-4 < found.embedding < 0.1
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert kinds.count("MatMulInteger") == 4  # qkv, the projection, two of the MLP
    embedding, uncertainty, _ = portable.session(path, 1).run(None, {"pixels": pixels.numpy()})
    own = model.head(torch.from_numpy(embedding)).numpy()
    np.testing.assert_allclose(uncertainty, own, rtol=0, atol=1e-6)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]


def test_int8_of_a_network_without_products_is_refused(tmp_path):
    graph = onnx_ir.Graph([], [], nodes=[onnx_ir.node("Conv", [])])
    program = torch.onnx.ONNXProgram(onnx_ir.Model(graph, ir_version=10), None)
    with pytest.raises(ValueError, match="matrix products, as a ViT is, for int8, got small: conv"):
        portable._quantise(program, tmp_path / "model.onnx", "small")


def test_there_is_no_int8_without_onnx(pixels, tmp_path):
    with pytest.raises(ValueError, match="expected float32 or float16 for torch.export, got int8"):
        portable.write_torch(build(), tmp_path / "model.pt2", pixels, "int8")


def test_a_models_file_is_found_and_exported_in_float16(checkpoint, tmp_path):
    weights = str(checkpoint(img_size=SIDE))
    backbone = load_backbone("test_vit", weights, SIDE, "own", "float32")
    sizes = setup(backbone.width)
    head = HEADS["ranking"](sizes)
    scale = quantiles(head.uncertainty(torch.randn(500, backbone.width)))
    about = backbone.preprocessing.__dict__
    card = {"backbone": "test_vit", "weights": backbone.weights_hash(), "preprocessing": about}
    card["precision"] = "float32"
    save(tmp_path / "head.safetensors", SavedHead("ranking", 0, head, scale, sizes.sizes, card, {}))
    for number in range(3):
        random = np.random.default_rng(number).integers(256, size=(50, 40, 3), dtype=np.uint8)
        Image.fromarray(random).save(tmp_path / f"{number}.png")
    file = tmp_path / "model.pt2"
    done = run(
        *(tmp_path / "head.safetensors", "--weights", weights, "--torch", file),
        *("--precision", "float16", "--check", tmp_path),
    )
    assert done.exit_code == 0, done.output
    assert "ranking (seed 0) on test_vit, in float16\n" in done.stdout
    assert "checked   3 pictures" in done.stdout
    state = torch.export.load(file).state_dict
    kinds = {name.split(".")[1] + "." * (".network." in name): t.dtype for name, t in state.items()}
    assert kinds.pop("backbone.") == torch.float16
    assert kinds == {
        "backbone": torch.float32, "head": torch.float32, "quantiles": torch.float64,
    }  # fmt: skip


def test_answers_that_are_too_far_off_are_refused():
    good = Difference(1e-6, 1e-6, 0.5, 1e-7, 1.0)  # percentiles of tied images jump
    good.check("float32")
    for field, precision in (("embedding", "float32"), ("uncertainty", "float32")):
        for value in (1.1e-4, np.nan):
            with pytest.raises(ValueError, match=r"within 0.0001 of the model's, got differences"):
                good._replace(**{field: value}).check(precision)
    for precision, order in (("float16", 0.98), ("int8", 0.89), ("int8", np.nan)):
        with pytest.raises(ValueError, match="to a rank correlation of 0.9.*, got differences of"):
            good._replace(order=order).check(precision)
    for precision in ("float32", "float16", "int8"):
        with pytest.raises(ValueError, match="No file is written: take another precision"):
            good._replace(scale=0.01).check(precision)


def test_a_file_that_answers_otherwise_is_not_written(pixels, tmp_path, monkeypatch):
    monkeypatch.setattr(portable, "running", lambda _: lambda part: [
        np.full((len(part), DIM), np.nan, np.float32), *np.zeros((2, len(part)), np.float32)
    ])  # fmt: skip
    with pytest.raises(ValueError, match="expected answers within 0.0001 of the model's, got"):
        portable.write_torch(build(), tmp_path / "model.pt2", pixels)
    assert not list(tmp_path.iterdir())


def test_a_head_without_percentiles_differs_in_none(pixels):
    model = build()
    model.quantiles.fill_(np.nan)
    run = portable.running(portable.Graph(model))
    assert difference(run, run, model, pixels) == (0, 0, 0, 0, 1)


def test_the_model_is_left_as_it_is(exported):
    model = exported[0]
    assert model.backbone.precision == "bfloat16"
    for name, tensor in build(Sum(KINDS)).state_dict().items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected a file to write: --onnx, --torch or both"),
        (["--torch", "a.pt2", "--precision", "int8"], "float32 or float16 with --torch, got int8"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(options, message):
    done = run(*options)
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())


def test_too_few_pictures_to_check_with_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(model_module, "load", lambda *_, **__: build())
    (tmp_path / "a.png").write_bytes(b"")
    done = run("--torch", tmp_path / "model.pt2", "--check", tmp_path)
    assert done.exit_code == 1
    assert "expected 3 pictures or more (bmp, gif," in done.stderr
    assert f"in {tmp_path}, got 1" in done.stderr


def test_of_many_pictures_some_are_taken_from_all_over_the_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(export, "MOST", 3)
    for level in range(7):
        (tmp_path / f"{level % 2}").mkdir(exist_ok=True)
        Image.new("L", (SIDE, SIDE), level).save(tmp_path / f"{level % 2}" / f"{level}.png")
    pixels = export._of_folder(tmp_path, build().preprocess)
    assert pixels[:, 0, 0, 0].tolist() == [0, 6, 5]


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_a_missing_package_names_the_extra(monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    done = run("--onnx", "model.onnx")
    assert done.exit_code == 1
    assert f"got none (import of {missing} halted" in done.stderr
    assert "pip install 'askance[onnx]'" in done.stderr
