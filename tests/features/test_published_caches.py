"""Caches of the original program: their rows here, ours there, and what is not let in."""

import builtins
import re
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import typer
import yaml
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from askance import published, verify
from askance.features import published as caches
from askance.features.embed import Embedder
from askance.features.index import SCHEMA, Index
from askance.features.layout import Array, Layout
from askance.features.recipe import Recipe
from askance.features.store import FeatureStore
from askance.features.views import View
from askance.features.writer import StoreWriter
from askance.heads.checkpoint import load
from askance.stages import probe, train

h5py = pytest.importorskip("h5py")
DIM, CLASSES = 64, 3  # of the tiny backbone
BACKBONE = {"backbone": "test_vit", "weights": "ab", "precision": "float32"} | {
    "preprocessing": {"size": 32, "crop": 0.875, "mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]}
}

app = typer.Typer()
for name, wrapped in published.COMMANDS.items():
    app.command(name)(wrapped)
app.command("verify")(verify.main)


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def rows(n, d=DIM, seed=0):
    """Return embeddings and labels."""
    random = np.random.default_rng(seed)
    return random.standard_normal((n, d), np.float32), random.integers(CLASSES, size=n)


def cached(path, embed, label, batch=128):
    """Write a cache as the original does: by batches, the first of which decides the chunks."""
    label = np.float32(label)[:, None]
    with h5py.File(path, "w") as file:
        for name, values in (("embed", embed), ("label", label)):
            array = file.create_dataset(name, data=values[:batch], maxshape=(None, values.shape[1]))
            for start in range(batch, len(values), batch):
                array.resize(start + len(values[start : start + batch]), axis=0)
                array[start:] = values[start : start + batch]
    return path


def as_they_read_it(path):
    """Return the rows as the original's reader takes them: one by one, the label as a number."""
    with h5py.File(path) as file:
        embed, label = file["embed"], file["label"]
        found = [(embed[row], int(label[row, 0])) for row in range(len(embed))]
    return np.stack([x for x, _ in found]), [y for _, y in found]


def content(path):
    """Return both arrays, to the byte, with their types, chunks and limits."""
    with h5py.File(path) as file:
        return [
            (name, x[:].tobytes(), x.dtype, x.shape, x.chunks, x.maxshape, x.compression)
            for name, x in sorted(file.items())
        ]


def arrays(path):
    group = zarr.open_group(path, mode="r")
    return {name: array[:] for name, array in group.arrays()}


@pytest.fixture(scope="module")
def weights(checkpoint):
    return checkpoint(img_size=32)


@pytest.fixture(scope="module")
def embedder(weights):
    options = {"weights": str(weights), "size": 32, "preprocess": "published", "device": "cpu"}
    options |= {"dtype": "float32", "classifier": "own"}
    return Embedder.load(Recipe((View.AUGMENT,), "test_vit", **options))


def imported(dataset, out, weights, *options):
    call = ["import-cache", dataset, out, "--backbone", "test_vit", "--weights", weights]
    return run(*call, "--size", 32, *options)


@given(st.integers(1, 300), st.integers(20, 320), st.sampled_from([7, 128]))
@settings(max_examples=12)
def test_there_and_back_is_the_same_to_the_byte(tmp_path_factory, embedder, n, block, batch):
    root = tmp_path_factory.mktemp("caches")
    path = cached(root / "dataset.hdf5", *rows(n), batch)
    whole = replace(embedder, recipe=replace(embedder.recipe, block=block))
    index = caches.index_of(path, DIM)
    with StoreWriter(root / "a.zarr", caches.layout_of(whole, index), index) as writer:
        for part in caches.embedded(path, whole, index, writer.missing()):
            writer.write(part.block, part.arrays, part.refused)
        writer.finish()
    caches.write(root / "again.hdf5", FeatureStore.open(root / "a.zarr"), lambda count: None)
    before, after = content(path), content(root / "again.hdf5")
    if n < 128 or batch != 128:  # a first batch of another size decides other chunks
        before, after = ([x[:4] for x in each] for each in (before, after))
    assert before == after


def stored(path, n, views, block, refused=(), label=None):
    """Write a store of `views` augmented views, without a backbone."""
    embedding, labels = rows(n * views)
    labels = np.int32(labels[:n] if label is None else label)
    table = pa.table(
        [
            [f"k{row}" for row in range(n)], ["s"] * n, range(n), [0] * n, [0] * n, labels,
            [""] * n, [None] * n,
        ],
        schema=SCHEMA,
    )  # fmt: skip
    layout = Layout(
        {"embedding": Array((views, DIM), "float32", (1, DIM))},
        block,
        BACKBONE | {"views": ["augment"] * views, "classifier": False},
    )
    embedding = embedding.reshape(n, views, DIM)
    with StoreWriter(path, layout, Index(path.parent, table, {}, {"s": "1"})) as writer:
        for each in writer.blocks:
            why = {row: "so" for row in refused if row in each.rows}
            writer.write(each, {"embedding": embedding[each.start : each.stop]}, why)
        writer.finish()
    return embedding, labels


@given(st.data(), st.integers(1, 40), st.integers(1, 3), st.integers(1, 50))
@settings(max_examples=12)
def test_the_views_of_the_done_rows_stand_one_after_another(
    tmp_path_factory, data, n, views, block
):
    refused = data.draw(st.sets(st.integers(0, n - 1), max_size=n - 1))
    root = tmp_path_factory.mktemp("stores")
    embedding, label = stored(root / "a.zarr", n, views, block, refused)
    done = [row for row in range(n) if row not in refused]
    caches.write(root / "a.hdf5", FeatureStore.open(root / "a.zarr"), lambda count: None)
    embed, labels = as_they_read_it(root / "a.hdf5")
    np.testing.assert_array_equal(embed, np.concatenate([embedding[done, v] for v in range(views)]))
    assert labels == label[done].tolist() * views


@pytest.fixture(scope="module")
def store(tmp_path_factory, make_set, extract):
    """Return a store of one view, extracted with the backbone's own classifier."""
    root = tmp_path_factory.mktemp("store")
    options = {"views": ["augment"], "preprocess": "published", "classifier": "own"}
    return extract(make_set(root, n=40, classes=CLASSES), root / "Up.zarr", **options)


def test_a_store_comes_back_with_its_embeddings_labels_and_losses(store, weights, tmp_path):
    result = run("export-cache", store, tmp_path)
    assert result.exit_code == 0, result.output
    dataset = tmp_path / "hdf5_up_train_test_vit" / "dataset.hdf5"
    result = imported(dataset, tmp_path / "b.zarr", weights, "--block", 8)
    assert result.exit_code == 0, result.output
    before, after = arrays(store), arrays(tmp_path / "b.zarr")
    assert before.keys() == after.keys() == {
        "embedding", "label", "loss", "logsumexp", "entropy", "status",
    }  # fmt: skip
    for name in ("embedding", "label", "status"):
        np.testing.assert_array_equal(before[name], after[name])
    for name in ("loss", "logsumexp", "entropy"):
        np.testing.assert_allclose(before[name], after[name], rtol=1e-5, atol=1e-6)
    one, other = FeatureStore.open(store), FeatureStore.open(tmp_path / "b.zarr")
    assert other.backbone == one.backbone
    np.testing.assert_array_equal(other.classifier.weight, one.classifier.weight)
    assert other.views == ("augment",)
    assert other.keys[:2] == ["000000000", "000000001"]


def test_an_exported_cache_is_found_and_read_by_the_original(store, tmp_path):
    call = ["export-cache", store, tmp_path, "--name", "ImageNet21k", "--split", "val"]
    assert run(*call).exit_code == 0
    folder = tmp_path / "hdf5_imagenet21k_val_test_vit"
    assert {path.name for path in folder.iterdir()} == {"dataset.hdf5", "args.yaml"}
    embed, label = as_they_read_it(folder / "dataset.hdf5")
    np.testing.assert_array_equal(embed, FeatureStore.open(store).embedding("augment"))
    assert label == FeatureStore.open(store).labels.tolist()
    with h5py.File(folder / "dataset.hdf5") as file, h5py.File(tmp_path / "x", "w") as other:
        assert (file["embed"].maxshape, file["label"].maxshape) == ((None, DIM), (None, 1))
        first = other.create_dataset("x", data=np.zeros((128, DIM), "f4"), maxshape=(None, DIM))
        assert file["embed"].chunks == first.chunks
    told = yaml.safe_load((folder / "args.yaml").read_text())
    assert (told["model"], told["split"], told["img_size"]) == ("test_vit", "val", 32)
    assert (told["mean"], told["crop_pct"]) == ([0.485, 0.456, 0.406], 0.875)


def test_an_export_is_not_done_twice_and_replaces_nothing(store, tmp_path):
    assert run("export-cache", store, tmp_path).exit_code == 0
    out = tmp_path / "hdf5_up_train_test_vit"
    before = (out / "dataset.hdf5").stat().st_mtime_ns
    assert run("export-cache", store, tmp_path).exit_code == 0
    assert (out / "dataset.hdf5").stat().st_mtime_ns == before
    stored(tmp_path / "up.zarr", 3, 1, 8)
    result = run("export-cache", tmp_path / "up.zarr", tmp_path)
    assert result.exit_code == 1
    assert f"expected nothing in {out}, got another cache: remove it, or say --name" in (
        result.stderr
    )
    assert (out / "dataset.hdf5").stat().st_mtime_ns == before


def test_both_programs_train_on_the_same_rows(weights, tmp_path):
    """Of a cache: the losses are those that the original computes at each step."""
    embed, label = rows(60)
    path = cached(tmp_path / "dataset.hdf5", embed, label)
    assert imported(path, tmp_path / "up.zarr", weights).exit_code == 0
    probe.run(tmp_path / "up.zarr", tmp_path / "up.probe.zarr")
    losses = FeatureStore.open(tmp_path / "up.probe.zarr")
    own = losses.classifier
    logits = embed.astype(np.float64) @ own.weight.T + own.bias
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(60), label]
    np.testing.assert_allclose(losses.read("loss")[:, 0], expected, rtol=1e-4, atol=1e-5)
    places = tmp_path / "up.zarr", tmp_path / "up.probe.zarr", tmp_path / "models", tmp_path / "c"
    train.run(*places, heads=["ranking"], seeds=[0], steps=5, batch=16, width=8)
    saved = load(tmp_path / "models" / "ranking-0.safetensors")
    assert saved.backbone["preprocessing"]["crop"] == 0.875


def test_without_a_classifier_a_probe_is_fitted(weights, tmp_path):
    path = cached(tmp_path / "dataset.hdf5", rows(60)[0], np.arange(60) % 4 + 100)
    result = imported(path, tmp_path / "up.zarr", weights)
    assert result.exit_code == 1
    assert "expected labels from 0 to 2 (the classifier of test_vit), got 100 to 103" in (
        result.stderr
    )
    result = imported(path, tmp_path / "up.zarr", weights, "--classifier", "none")
    assert result.exit_code == 0, result.output
    assert arrays(tmp_path / "up.zarr").keys() == {"embedding", "label", "status"}
    probe.run(tmp_path / "up.zarr", tmp_path / "p.zarr", folds=2, iterations=5)
    assert FeatureStore.open(tmp_path / "p.zarr").classifier.bias.shape == (4,)


def test_an_import_goes_on_where_it_stopped(weights, tmp_path, monkeypatch):
    path = cached(tmp_path / "dataset.hdf5", *rows(60))
    assert imported(path, tmp_path / "whole.zarr", weights, "--block", 16).exit_code == 0
    write, written = StoreWriter.write, []

    def stopping(self, block, *arguments):
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(block.number)
        write(self, block, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(StoreWriter, "write", stopping)
        assert imported(path, tmp_path / "a.zarr", weights, "--block", 16).exit_code == 130
    with pytest.raises(ValueError, match="expected a finished store"):
        FeatureStore.open(tmp_path / "a.zarr")
    result = imported(path, tmp_path / "a.zarr", weights, "--block", 16)
    assert result.exit_code == 0
    assert "continuing" in result.stdout
    assert "import dataset.hdf5: 28/28 rows" in result.stderr
    one, other = arrays(tmp_path / "whole.zarr"), arrays(tmp_path / "a.zarr")
    assert all(one[name].tobytes() == other[name].tobytes() for name in one)
    again = imported(path, tmp_path / "a.zarr", weights, "--block", 16)
    assert (again.exit_code, "complete" in again.stdout) == (0, True)


def test_another_cache_is_another_store(weights, tmp_path):
    for seed in (0, 1):
        path = cached(tmp_path / "dataset.hdf5", rows(20, seed=seed)[0], np.zeros(20))
        result = imported(path, tmp_path / "a.zarr", weights)
        assert result.exit_code == 0, result.output
    assert "index changed; the old store is set aside as a.zarr." in result.stdout


def test_rows_that_are_not_finite_are_refused_and_counted(weights, tmp_path):
    embed, label = rows(20)
    embed[3, 5], embed[17] = np.nan, np.inf
    path = cached(tmp_path / "dataset.hdf5", embed, label)
    result = imported(path, tmp_path / "a.zarr", weights)
    assert result.exit_code == 3
    assert "expected at most 0.00% of 20 rows refused, got 2 that are not finite" in result.stderr
    result = imported(path, tmp_path / "a.zarr", weights, "--refusals", 0.1)
    assert (result.exit_code, "20 rows of" in result.stdout) == (0, True)
    there = FeatureStore.open(tmp_path / "a.zarr")
    np.testing.assert_array_equal(there.embedding("augment"), np.delete(embed, [3, 17], axis=0))
    caches.write(tmp_path / "b.hdf5", there, lambda count: None)
    assert len(as_they_read_it(tmp_path / "b.hdf5")[0]) == 18


def test_an_imported_store_is_verified_and_not_repaired_from_pictures(weights, tmp_path):
    path = cached(tmp_path / "dataset.hdf5", *rows(20))
    assert imported(path, tmp_path / "a.zarr", weights).exit_code == 0
    result = run("verify", tmp_path / "a.zarr")
    assert result.exit_code == 0, result.output
    assert "losses of 20 rows computed again, no row embedded again" in result.stdout
    chunk = tmp_path / "a.zarr" / "embedding" / "c" / "0" / "0" / "0"
    chunk.write_bytes(bytes(8) + chunk.read_bytes()[8:])
    result = run("verify", tmp_path / "a.zarr", "--repair")
    assert result.exit_code == 1
    assert "expected a store of extract, got" in result.stderr
    assert "remove it, and import again" in result.stderr


def whole(path, **changes):
    """Write both arrays at once, with those of `changes`, or without where they are None."""
    embed, label = rows(20)
    given = {"embed": embed, "label": np.float32(label)[:, None]} | changes
    with h5py.File(path, "w") as file:
        for name, values in given.items():
            if values is not None:
                file[name] = values
    return path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": None}, r"expected embed \(rows, d\) and label \(rows, 1\), .* and None"),
        ({"embed": rows(20)[0].astype(np.float64)}, 'both float32, .* type "<f8">'),
        ({"embed": np.zeros((0, DIM), "f4"), "label": np.zeros((0, 1), "f4")}, "expected embed"),
        ({"label": np.zeros((19, 1), "f4")}, r"shape \(19, 1\)"),
        ({"label": np.zeros(20, "f4")}, r"shape \(20,\)"),
        ({"embed": rows(20, 9)[0]}, "of 64 columns, as the backbone's, got 9 in"),
        ({"embed": h5py.SoftLink("/label")}, "got None and"),
        ({"embed": h5py.ExternalLink("other.hdf5", "embed")}, "got None and"),
        ({"label": np.full((20, 1), 0.5, "f4")}, "labels in .*, got 0.5 in row 0"),
        ({"label": np.full((20, 1), np.nan, "f4")}, "got nan in row 0"),
        ({"label": np.full((20, 1), 2.0**24, "f4")}, "below 16,777,216 as labels .* got 16777216"),
    ],
)
def test_what_is_no_cache_is_refused(tmp_path, changes, message):
    whole(tmp_path / "other.hdf5")
    with pytest.raises(ValueError, match=message):
        caches.index_of(whole(tmp_path / "x.hdf5", **changes), DIM)


def test_nothing_outside_the_file_is_read(tmp_path):
    whole(tmp_path / "other.hdf5")
    path = whole(tmp_path / "x.hdf5", embed=None)
    layout = h5py.VirtualLayout((20, DIM), "f4")
    layout[...] = h5py.VirtualSource(tmp_path / "other.hdf5", "embed", (20, DIM))
    with h5py.File(path, "a") as file:
        file.create_virtual_dataset("embed", layout)
    (tmp_path / "raw").write_bytes(rows(20)[0].tobytes())
    raw = whole(tmp_path / "y.hdf5", embed=None)
    with h5py.File(raw, "a") as file:
        outside = [(tmp_path / "raw", 0, h5py.h5f.UNLIMITED)]
        file.create_dataset("embed", (20, DIM), "f4", external=outside)
    for each in (path, raw):
        with pytest.raises(ValueError, match="got None and"):
            caches.index_of(each, DIM)


def test_rows_never_written_are_not_taken_for_zeros(tmp_path):
    path = cached(tmp_path / "dataset.hdf5", *rows(256))
    caches.index_of(path, DIM)
    with h5py.File(path, "a") as file:
        file["embed"].resize(384, axis=0)
        file["label"].resize(384, axis=0)
    with pytest.raises(ValueError, match="got rows of /embed in .* that were never written"):
        caches.index_of(path, DIM)


def test_what_is_no_hdf5_file_is_refused(tmp_path):
    path = cached(tmp_path / "dataset.hdf5", *rows(20))
    path.write_bytes(path.read_bytes()[:3000])
    (text := tmp_path / "text.hdf5").write_text("a text\n")
    for each in (path, text):
        with pytest.raises(ValueError, match=f"expected an HDF5 file in {each}, got"):
            caches.index_of(each, DIM)
    with pytest.raises(FileNotFoundError, match="got no file .*none.hdf5"):
        caches.index_of(tmp_path / "none.hdf5", DIM)


def test_what_can_not_be_exported_is_refused_and_nothing_is_left(store, tmp_path):
    stored(tmp_path / "large.zarr", 3, 1, 8, label=[0, 1, 2**24])
    stored(tmp_path / "none.zarr", 2, 1, 8, refused=[0, 1])
    probe.run(store, tmp_path / "up.probe.zarr")
    for path, options, message in (
        (tmp_path / "large.zarr", [], "expected labels below 16,777,216, .* got 16777216 in"),
        (tmp_path / "none.zarr", [], "expected rows to export, got none that is not refused"),
        (tmp_path / "up.probe.zarr", [], "expected an array 'embedding' in"),
        (tmp_path / "nothing.zarr", [], "expected a store of format"),
        (store, ["--name", "a/b"], "expected names of letters, digits and _.-, got the folder"),
    ):
        result = run("export-cache", path, tmp_path / "out", *options)
        assert result.exit_code == 1
        assert re.search(message, result.stderr)
    assert not list((tmp_path / "out").glob("*"))


def test_without_h5py_its_extra_is_named(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *arguments, **options):
        if name == "h5py":
            raise ImportError("No module named 'h5py'")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ValueError, match=r"expected h5py .*: install askance\[published\]"):
        caches.index_of(tmp_path / "x.hdf5", DIM)
