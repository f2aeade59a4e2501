"""Heads of the original program: what they say here, and what is not let in."""

import argparse
import os
from collections import OrderedDict
from itertools import pairwise

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn.functional import leaky_relu, linear, softplus
from typer.testing import CliRunner

import askance
from askance import published, select, threshold
from askance.features.store import FeatureStore
from askance.heads.checkpoint import load
from askance.heads.published import read
from askance.stages.uncertainties import read_heads

DIM = 64  # of test_vit

app = typer.Typer()
for name, wrapped in published.COMMANDS.items():
    app.command(name)(wrapped)
app.command("select")(select.main)
app.command("threshold")(threshold.main)


def layers(dim=DIM, width=12, depth=2, seed=0):
    """Return the tensors of a pred-net by the names within it."""
    torch.manual_seed(seed)
    widths = [dim, *[width] * depth, 1]
    return {
        f"{2 * n}.{kind}": torch.randn(*shape) / fan_in**0.5
        for n, (fan_in, fan_out) in enumerate(pairwise(widths))
        for kind, shape in (("weight", (fan_out, fan_in)), ("bias", (fan_out,)))
    }


def definition(tensors, embedding):
    """Return what the head says, by its definition (spec: arXiv 2402.16569, section 3)."""
    x, last = embedding, len(tensors) // 2 - 1
    for n in range(last):
        x = leaky_relu(linear(x, tensors[f"{2 * n}.weight"], tensors[f"{2 * n}.bias"]), 0.01)
    x = linear(x, tensors[f"{2 * last}.weight"], tensors[f"{2 * last}.bias"])
    return 1e-6 + softplus(x, beta=1, threshold=20)[:, 0]


@pytest.fixture(scope="module")
def weights(checkpoint):
    return checkpoint(img_size=32)


@pytest.fixture(scope="module")
def backbone(weights):
    return load_file(weights)


@pytest.fixture
def write(tmp_path, backbone):
    """Return a function that writes a checkpoint as the original does, and returns its path."""

    def write(head=None, prefix="", name="best.pth.tar", **changes):
        head = layers() if head is None else head
        state = OrderedDict({f"{prefix}model.{n}": tensor for n, tensor in backbone.items()})
        state |= {f"{prefix}unc_module.unc_module.{n}": tensor for n, tensor in head.items()}
        optimised = torch.nn.Parameter(torch.zeros(3))
        args = argparse.Namespace(
            model="test_vit", seed=4, img_size=32, lr_base=1e-3, dataset="hdf5/imagenet21k",
            std=None, decay_epochs=[3, 5], no_aug=False,
        )  # fmt: skip
        content = {
            "epoch": 17,
            "arch": "test_vit",
            "state_dict": state,
            "optimizer": torch.optim.AdamW([optimised]).state_dict(),
            "version": 2,
            "args": args,
            "amp_scaler": {"scale": 65536.0, "growth_factor": 2.0},
            "metric": 0.79,
        }
        torch.save(content | changes, tmp_path / name)
        return tmp_path / name

    return write


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def imported(write, weights, tmp_path):
    """Return a function that imports a checkpoint, and returns the path of the head."""

    def imported(*options, **changes):
        out = tmp_path / "out" / "ranking-4.safetensors"
        call = ["import-head", write(**changes), out, "--backbone", "test_vit"]
        result = run(*call, "--weights", weights, *options)
        assert result.exit_code == 0, result.output
        return out

    return imported


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.sampled_from(["", "module."]))
@settings(max_examples=15)
def test_a_head_says_what_its_definition_says(tmp_path_factory, dim, width, depth, prefix):
    tensors = layers(dim, width, depth)
    path = tmp_path_factory.mktemp("checkpoints") / "x.pth.tar"
    state = {f"{prefix}unc_module.unc_module.{n}": tensor for n, tensor in tensors.items()}
    torch.save({"state_dict": state}, path)
    found = read(path)
    assert (found.sizes["dim"], found.sizes["width"]) == (dim, width)
    assert found.sizes["depth"] == depth
    embedding = 30 * torch.randn(40, dim)
    torch.testing.assert_close(found.head(embedding), definition(tensors, embedding))


@pytest.mark.parametrize("prefix", ["", "module."])
def test_an_imported_head_is_a_model(imported, weights, encode, tmp_path, prefix):
    out = imported(prefix=prefix)
    (tmp_path / "picture.png").write_bytes(encode(3))
    model = askance.load(out, str(weights))
    embedding, uncertainty = model(tmp_path / "picture.png")
    torch.testing.assert_close(uncertainty, definition(layers(), embedding))
    preprocessing = model.preprocess.preprocessing
    assert (preprocessing.size, preprocessing.crop) == (32, 0.875)
    assert preprocessing.mean == (0.485, 0.456, 0.406)
    assert preprocessing.std == (0.229, 0.224, 0.225)


def test_the_card_says_where_a_head_comes_from(imported, tmp_path):
    from askance.pipeline.artifacts import sha256

    saved = load(imported())
    assert (saved.name, saved.seed, saved.backbone["precision"]) == ("ranking", 4, "float32")
    assert saved.note["imported"] == {
        "file": "best.pth.tar",
        "sha256": sha256(tmp_path / "best.pth.tar"),
        "arch": "test_vit",
        "epoch": 17,
    }


def test_without_arguments_a_head_is_of_224_pixels_and_seed_0(write, weights, tmp_path):
    state = {f"unc_module.unc_module.{n}": tensor for n, tensor in layers().items()}
    path = write(args=None, arch=torch.zeros(2), state_dict=state)
    found = read(path)
    assert (found.side, found.seed, found.origin["epoch"]) == (0, 0, 17)
    assert "arch" not in found.origin
    for size, side in ((0, 224), (64, 64)):
        call = {"backbone": "test_vit", "weights": str(weights), "size": size}
        published.import_head(path, tmp_path / "out", **call)
        assert load(tmp_path / "out").backbone["preprocessing"]["size"] == side


def test_without_a_scale_percentiles_are_unknown(imported, weights, encode, tmp_path):
    out = imported()
    assert np.isnan(load(out).percentile(np.array([0.0, 0.7, 9.0]))).all()
    model = askance.load(out, str(weights))
    assert model.percentile(torch.tensor([0.0, 0.7, 9.0])).isnan().all()
    assert model.card()["quantiles"] is None


@pytest.fixture(scope="module")
def upstream(tmp_path_factory, make_set, extract):
    root = tmp_path_factory.mktemp("upstream")
    data = make_set(root, n=24)
    extract(data, root / "own.zarr", views=["plain"])
    extract(data, root / "up.zarr", preprocess="published")
    extract(data, root / "drawn.zarr", preprocess="published", views=["augment"])
    return root


def test_a_scale_gives_percentiles_among_its_images(imported, upstream):
    for name, view in (("up", "plain"), ("drawn", "augment")):
        embedding = FeatureStore.open(upstream / f"{name}.zarr").embedding(view)
        expected = definition(layers(), torch.from_numpy(embedding)).double().numpy()
        saved = load(imported("--scale", upstream / f"{name}.zarr"))
        found = saved.percentile(np.sort(expected))
        np.testing.assert_allclose(found, np.linspace(0, 1, 24), atol=1e-3)


def test_an_imported_head_chooses_what_to_label(imported, upstream, tmp_path):
    out, table = imported(), tmp_path / "chosen.parquet"
    call = ["select", upstream / "up.zarr", out, "--count", 5, "--out", table, "--how"]
    result = run(*call, "uncertain")
    assert result.exit_code == 0, result.output
    chosen = pq.read_table(table).to_pydict()
    embedding = torch.from_numpy(FeatureStore.open(upstream / "up.zarr").embedding("plain"))
    assert chosen["row"] == definition(layers(), embedding).argsort(descending=True)[:5].tolist()
    assert set(chosen["reason"]) == {"of unknown percentile"}
    assert run(*call, "both").exit_code == 1


def test_a_percentile_that_is_not_known_is_no_threshold(imported):
    out = imported()
    result = run("threshold", "--model", out, "--percentile", 0.5)
    assert result.exit_code == 1
    assert "expected a head that knows upstream images, got ranking, imported without" in (
        result.stderr
    )


def test_an_imported_head_is_not_evaluated_with_those_trained_here(imported, upstream):
    losses = FeatureStore.open(upstream / "up.zarr")
    with pytest.raises(ValueError, match="expected heads trained on .*up.zarr, got others"):
        read_heads(imported().parent, losses)


class Planted:
    """A pickle that would make a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("where", ["beside", "args", "state_dict", "alone"])
def test_code_in_a_checkpoint_never_runs(write, weights, tmp_path, where):
    planted = Planted(tmp_path / "made")
    if where == "alone":
        torch.save(planted, path := tmp_path / "x.pth.tar")
    elif where == "state_dict":
        path = write(head=layers() | {"8.weight": planted})
    elif where == "args":
        path = write(args=argparse.Namespace(model="test_vit", extra=[planted]))
    else:
        path = write(extra=planted)
    result = run("import-head", path, tmp_path / "out", "--backbone", "test_vit")
    assert result.exit_code == 1
    assert "without code in it, got UnpicklingError: " in result.stderr
    assert "nsupported GLOBAL posix.mkdir" in result.stderr
    assert "set to `False`" not in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == {path.name}
    torch.load(path, weights_only=False)  # it would have run
    assert (tmp_path / "made").is_dir()


def test_no_class_but_namespace_is_let_in(write):
    path = write(args=argparse.FileType())
    with pytest.raises(ValueError, match=r"Unsupported .*argparse\.FileType"):
        read(path)
    assert argparse.Namespace not in torch.serialization.get_safe_globals()


def without(name):
    return {n: tensor for n, tensor in layers().items() if n != name}


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({}, r"expected one head .* in the state_dict of .*, got 0"),
        ({"0.weight": torch.zeros(2)}, r"each with weight and bias, .* got \{'0.weight': \(2,\)\}"),
        (without("2.bias"), "expected linear layers 0, 2, ..., each with weight and bias"),
        (without("0.weight"), "expected linear layers"),
        (layers() | {"6.weight": torch.zeros(1, 1), "6.bias": torch.zeros(1)}, "linear layers"),
        (layers() | {"4.weight": torch.zeros(2, 12), "4.bias": torch.zeros(2)}, "single number"),
        (layers() | {"2.bias": torch.full((12,), torch.nan)}, "NaN or infinity in 2.bias"),
        (layers() | {"2.bias": "text"}, "expected linear layers"),
        (layers(dim=9), r"a backbone of 9 columns, .* \(test_vit\), got 64 of test_vit"),
    ],
)
def test_what_is_no_such_head_is_refused(write, weights, tmp_path, head, message):
    call = write(head=head), tmp_path / "out"
    with pytest.raises(ValueError, match=message):
        published.import_head(*call, backbone="test_vit", weights=str(weights))
    assert not (tmp_path / "out").exists()


def test_two_heads_are_one_too_many(write, backbone):
    state = {f"{p}.unc_module.unc_module.{n}": t for p in "ab" for n, t in layers().items()}
    with pytest.raises(ValueError, match="expected one head .*, got 2"):
        read(write(state_dict=state))


@pytest.mark.parametrize("content", [[1, 2], {"state_dict": 3}, {"model": {}}])
def test_another_file_of_torch_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="expected one head .*x.pth, got 0"):
        read(tmp_path / "x.pth")


def test_what_is_no_file_of_torch_is_refused(write, tmp_path):
    whole = write()
    whole.write_bytes(whole.read_bytes()[:-300])
    (text := tmp_path / "text.pth.tar").write_text("a text\n")
    for path in (whole, text):
        with pytest.raises(ValueError, match="expected a checkpoint of the original program in"):
            read(path)
    with pytest.raises(FileNotFoundError, match="got no .*none.pth.tar"):
        read(tmp_path / "none.pth.tar")


def test_other_weights_than_those_in_the_checkpoint_are_refused(write, checkpoint, tmp_path):
    other = checkpoint(img_size=32, seed=1)
    call = write(), tmp_path / "out"
    with pytest.raises(ValueError, match=r"expected the weights that .* got others of test_vit \("):
        published.import_head(*call, backbone="test_vit", weights=str(other))


def test_the_classifier_beside_a_head_is_no_matter(write, backbone, weights, tmp_path):
    state = {f"model.{n}": t + 1 if n.startswith("head.") else t for n, t in backbone.items()}
    state |= {f"unc_module.unc_module.{n}": tensor for n, tensor in layers().items()}
    call = write(state_dict=state), tmp_path / "out"
    published.import_head(*call, backbone="test_vit", weights=str(weights))
    assert (tmp_path / "out").is_file()


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("own.zarr", "expected embeddings of the backbone .*preprocessing"),
        ("none.zarr", "expected a store of format"),
    ],
)
def test_a_scale_of_other_embeddings_is_refused(write, weights, upstream, tmp_path, store, message):
    call = {"backbone": "test_vit", "weights": str(weights), "scale": upstream / store}
    with pytest.raises(ValueError, match=message):
        published.import_head(write(), tmp_path / "out", **call)
    assert not (tmp_path / "out").exists()
