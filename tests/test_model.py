"""The model that people import: every kind of picture, and all that torch does with a module."""

import copy
import gc
import os
import pickle
import weakref
from io import BytesIO

import jaxtyping
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import askance
from askance.features.backbone import load_backbone
from askance.features.views import decode
from askance.heads.catalogue import HEADS
from askance.heads.checkpoint import SavedHead, quantiles
from askance.heads.head import Setup
from askance.heads.percentile import percentile
from askance.model import AT_A_TIME

SIDE, DIM = 32, 64


@pytest.fixture(scope="module")
def make(checkpoint):
    """Return a function that builds a model: a head by name on a tiny ViT at 32 pixels."""
    weights = str(checkpoint(img_size=SIDE))

    def make(name="ranking", precision="float32"):
        torch.manual_seed(2)
        backbone = load_backbone("test_vit", weights, SIDE, "own", precision)
        setup = Setup(DIM, 16, 2, torch.randn(3, DIM), torch.randn(3))
        head = HEADS[name](setup).eval().requires_grad_(False)
        scale = quantiles(head.uncertainty(torch.randn(500, DIM)))
        card = {"backbone": "test_vit", "weights": backbone.weights_hash()}
        classifier = (setup.weight, setup.bias)
        saved = SavedHead(name, 0, head, scale, setup.sizes, card, {}, classifier)
        return askance.Model(backbone, saved)

    return make


@pytest.fixture(scope="module")
def model(make):
    return make()


@pytest.fixture(scope="module")
def pixels():
    return torch.randint(0, 256, (5, 3, SIDE, SIDE), dtype=torch.uint8)


def assert_same(answer, expected, **tolerance):
    for one, other in zip(answer, expected, strict=True):
        torch.testing.assert_close(one, other, **tolerance)


# Pictures


def test_a_picture_its_path_and_its_pixels_are_the_same(model, encode, tmp_path):
    content = encode(1, size=(50, 40))
    (tmp_path / "a.png").write_bytes(content)
    expected = model(model.preprocess(decode(content))[None])
    for picture in (decode(content), tmp_path / "a.png", str(tmp_path / "a.png")):
        assert_same(model(picture), expected)
        assert_same(model([picture]), expected)


def test_a_list_of_any_length_gives_a_row_each(model, encode, tmp_path):
    pictures = [decode(encode(i)) for i in range(AT_A_TIME + 3)]
    embedding, uncertainty = model(pictures)
    assert embedding.shape == (AT_A_TIME + 3, DIM)
    assert embedding.dtype == torch.float32
    assert_same((embedding[-1:], uncertainty[-1:]), model(pictures[-1]), rtol=1e-4, atol=1e-5)


def test_floating_pixels_from_0_to_1_are_the_same_as_levels(model, pixels):
    assert_same(model(pixels.float() / 255), model(pixels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "I;16", "1"])
def test_pictures_of_any_mode_and_of_one_pixel_are_taken(model, mode):
    for size in ((1, 1), (9, 70)):
        embedding, uncertainty = model(Image.new(mode, size))
        assert embedding.isfinite().all()
        assert uncertainty.isfinite().all()


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        ([], "expected pictures, got an empty list"),
        (torch.zeros(3, 32, 32), r"expected pixels of shape \(n, 3, 32, 32\), got \(3, 32, 32\)"),
        (torch.zeros(1, 32, 32, 3), r"got \(1, 32, 32, 3\): model.preprocess makes them"),
        (torch.zeros(1, 3, 32, 32, dtype=torch.int64), "expected uint8 or floating pixels, got"),
        (torch.full((1, 3, 32, 32), -2.1), "from 0 to 1, got -2.1 to -2.1: don't normalise"),
        (torch.full((1, 3, 32, 32), torch.nan), "from 0 to 1, got nan to nan"),
    ],
)
def test_what_is_no_picture_is_refused(model, pictures, message):
    with pytest.raises(ValueError, match=message):
        model(pictures)


def test_arrays_and_numbers_are_refused(model):
    with pytest.raises(TypeError, match="expected a PIL image or a path, got ndarray: pictures"):
        model([np.zeros((32, 32, 3), np.uint8)])


def test_a_file_that_is_no_picture_is_named(model, tmp_path):
    (tmp_path / "a.jpg").write_text("not a picture")
    with pytest.raises(ValueError, match="a.jpg: expected an image, got 13 bytes of something"):
        model([tmp_path / "a.jpg"])
    with pytest.raises(FileNotFoundError, match="b.jpg"):
        model(tmp_path / "b.jpg")


def test_what_is_no_file_or_too_large_is_not_read(model, tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(
        ValueError, match="expected a picture, got a folder or device at .*pipe.jpg"
    ):
        model(tmp_path / "pipe.jpg")
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(2**31)
    with pytest.raises(ValueError, match="a.jpg: expected at most 67,108,864 bytes, got 2,147,483"):
        model(tmp_path / "a.jpg")


def test_preprocess_goes_to_workers_without_the_model(model, encode):
    sent = pickle.dumps(model.preprocess)
    assert len(sent) < 1000
    picture = decode(encode(3))
    torch.testing.assert_close(pickle.loads(sent)(picture), model.preprocess(picture))


# Numbers


@pytest.mark.parametrize("name", HEADS)
def test_the_uncertainty_is_the_heads_own(make, pixels, name):
    model = make(name)
    embedding, uncertainty = model(pixels)
    torch.testing.assert_close(uncertainty, model.head.uncertainty(embedding))
    assert model.percentile(uncertainty).isfinite().all()


@given(st.lists(st.integers(0, 9), min_size=2, max_size=60), st.lists(st.floats(-1, 10)))
def test_a_percentile_is_the_mean_share_below_and_not_above(rows, values):
    """With ties half, as the definition counts; quantiles of n rows at n places are the rows."""
    scale = torch.tensor(sorted(rows), dtype=torch.float64)
    values = torch.tensor([*values, *rows], dtype=torch.float64)
    found, grid = percentile(scale, values), np.linspace(0, 1, len(rows))
    for value, share in zip(values.tolist(), found.tolist(), strict=True):
        tied = grid[np.array(sorted(rows)) == value]
        expected = (tied[0] + tied[-1]) / 2 if len(tied) else np.interp(value, scale, grid)
        np.testing.assert_allclose(share, expected, atol=1e-12)


def test_an_unknown_scale_and_an_undefined_uncertainty_have_no_percentile():
    unknown = torch.full((1001,), torch.nan, dtype=torch.float64)
    assert percentile(unknown, torch.tensor([0.5, 1.0])).isnan().all()
    scale = torch.linspace(0, 1, 1001, dtype=torch.float64)
    assert percentile(scale, torch.tensor([torch.nan])).isnan().all()


def test_the_classifier_is_the_linear_map_of_the_head_file(model, pixels):
    embedding, _ = model(pixels)
    weight, bias = model.saved.classifier
    torch.testing.assert_close(model.classifier(embedding), embedding @ weight.T + bias)


def test_without_a_probe_the_classifier_is_the_backbones_own(make, pixels):
    model = make()
    model.probe = None
    embedding, _ = model(pixels)
    own = model.backbone.network(model.backbone.normalised(pixels))
    torch.testing.assert_close(model.classifier(embedding), own)
    model.backbone.network.reset_classifier(0)
    assert model.classifier is None


def test_a_backbone_of_another_width_is_refused(model):
    sizes = model.saved.sizes | {"dim": 99}
    saved = SavedHead("ranking", 0, model.head, model.saved.quantiles, sizes, {}, {})
    with pytest.raises(
        ValueError, match="expected a head for embeddings of 64 columns.* for 99: name its"
    ):
        askance.Model(model.backbone, saved)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet", "resnet18", "test_efficientnet"])
@pytest.mark.parametrize("classes", [0, 5])
def test_the_width_is_that_of_an_embedding(checkpoint, name, classes):
    backbone = load_backbone(name, str(checkpoint(name, classes=classes)), 0, "own", "float32")
    side = backbone.preprocessing.size
    embedding = backbone(torch.zeros(1, 3, side, side, dtype=torch.uint8))
    assert embedding.shape == (1, backbone.width)


# A module


def test_it_is_frozen_and_in_evaluation_mode(model, pixels):
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(answer.requires_grad for answer in model(pixels))


def test_its_state_goes_into_another_one(make, pixels):
    one, other = make(), make("squared")
    sink = BytesIO()
    torch.save(one.state_dict(), sink)
    sink.seek(0)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    other.load_state_dict(torch.load(sink, weights_only=True))
    assert_same(other(pixels), one(pixels))
    assert_same(copy.deepcopy(one)(pixels), one(pixels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_half_precision_is_for_the_backbone_alone(make, pixels, dtype, precision):
    model = make(precision=precision)
    expected = model(pixels)
    answer = model.to(dtype)(pixels)
    assert model.backbone.dtype == dtype
    assert [answer[0].dtype, answer[1].dtype] == [torch.float32, torch.float32]
    assert model.quantiles.dtype == torch.float64
    assert {p.dtype for p in model.head.parameters()} == {torch.float32}
    assert_same(answer, expected, rtol=0.03, atol=0.03)


def test_it_compiles_as_one_graph(model, pixels, monkeypatch):
    """Without a C++ compiler: torch's own tracer, which can't trace the tests' check of shapes."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    assert_same(compiled(pixels), model(pixels))
    assert_same(compiled(pixels[:2]), model(pixels[:2]))


def test_under_autocast_the_head_is_exact(model, pixels):
    with torch.autocast("cpu", torch.bfloat16):
        embedding, uncertainty = model(pixels)
    assert torch.equal(uncertainty, model.head(embedding))


def test_a_model_is_freed_when_it_is_let_go(make):
    gc.disable()
    try:
        network = weakref.ref(make().backbone.network)
        assert network() is None
    finally:
        gc.enable()


def test_it_is_exported_with_a_batch_of_any_size(model, pixels):
    shape = ({0: torch.export.Dim("n")},)
    program = torch.export.export(model, (pixels,), dynamic_shapes=shape).module()
    for count in (1, 3, 5):
        assert_same(program(pixels[:count]), model(pixels[:count]))


@pytest.mark.gpu
def test_it_moves_to_a_gpu_and_answers_the_same(make, pixels):
    model = make()
    expected = model(pixels)
    answer = model.to("cuda")(pixels.to("cuda"))
    assert_same([part.cpu() for part in answer], expected, rtol=2e-3, atol=2e-3)
    assert model.percentile(answer[1]).device.type == "cuda"
