"""docs/extending.md: its three files are on the page as they are, and really work."""

import re
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from askance.features.index import read_index
from askance.features.reader import image
from askance.features.sources import SOURCES
from askance.features.store import FeatureStore
from askance.features.views import View, decode
from askance.heads import checkpoint
from askance.heads.catalogue import HEADS
from askance.heads.head import Batch, Setup
from askance.stages import evaluate, extract, prepare, train

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "extending.md"


def example(name):
    """Import an example as a program of one's own would, under a name of its own."""
    spec = spec_from_file_location(f"extending_{name}", ROOT / "docs" / "extending" / f"{name}.py")
    module = sys.modules[spec.name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def upper(monkeypatch):
    monkeypatch.delitem(HEADS, "upper", raising=False)
    yield example("head").Upper
    HEADS.pop("upper")


@pytest.fixture
def npz(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    arrays = {}
    for split, n in (("train", 6), ("test", 4)):
        arrays[f"{split}_images"] = rng.integers(256, size=(n, 9, 8, 3), dtype=np.uint8)
        arrays[f"{split}_labels"] = np.arange(n)[:, None] % 3
    np.savez(tmp_path / "mine.npz", **arrays)
    example("source")
    yield tmp_path / "mine.npz", arrays
    SOURCES.pop("npz")


@pytest.mark.parametrize("name", ["head", "source", "backbone"])
def test_the_page_shows_the_file_as_it_is(name):
    code = (ROOT / "docs" / "extending" / f"{name}.py").read_text()
    assert code in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_head_learns_the_quantile_that_it_names(upper):
    torch.manual_seed(0)
    loss = torch.rand(1000)
    head = upper(Setup(2, 4, 1, torch.zeros(3, 2), torch.zeros(3)))
    batch = Batch(torch.zeros(1000, 2), loss, torch.zeros(1000, dtype=torch.int64))
    adam = torch.optim.Adam(head.parameters(), 0.05)
    for _ in range(150):
        adam.zero_grad()
        head.objective(batch).backward()
        adam.step()
    torch.testing.assert_close(head(torch.zeros(1, 2))[0], loss.quantile(0.9), rtol=0, atol=0.02)


def test_the_head_is_trained_measured_and_loaded_as_any_other(upper, whole_run, tmp_path):
    stores, models = whole_run / "stores", tmp_path / "models"
    losses = stores / "upstream.probe.zarr"
    options = {"seeds": [0], "steps": 4, "batch": 8, "width": 8}
    heads = ["ranking", "upper"]
    train.run(stores / "upstream.zarr", losses, models, tmp_path / "c", heads=heads, **options)
    evaluate.run(
        models, losses, stores, whole_run / "neighbours", tmp_path / "results", sets=["new"]
    )
    rows = pq.read_table(tmp_path / "results" / "table.parquet").to_pylist()
    found = {row["head"]: row["value"] for row in rows if row["metric"] == "r_auroc"}
    assert 0 <= found["upper"] <= 1
    saved = checkpoint.load(models / "upper-0.safetensors")
    assert isinstance(saved.head, upper)
    del HEADS["upper"]  # what a program sees that has not imported the example
    with pytest.raises(ValueError, match="expected a head among ranking, .*, got 'upper'"):
        checkpoint.load(models / "upper-0.safetensors")
    HEADS["upper"] = upper


def test_the_source_is_prepared_with_every_option_of_a_source(npz, tmp_path):
    path, arrays = npz
    prepare.run(tmp_path / "set", [f"npz path={path} split=test"])
    index = read_index(tmp_path / "set")
    table = index.table.to_pylist()
    assert sorted(row["key"] for row in table) == [f"test/{n:06}" for n in range(4)]
    for row, sample in enumerate(table):
        place = int(sample["key"].rpartition("/")[2])
        assert sample["label"] == arrays["test_labels"][place, 0]
        np.testing.assert_array_equal(decode(image(index, row)), arrays["test_images"][place])


def test_a_file_without_labels_is_explained(npz, tmp_path):
    np.savez(tmp_path / "bare.npz", test_images=npz[1]["test_images"])
    with pytest.raises(ValueError, match="expected 4 labels in test_labels of .*bare.npz, got 0"):
        prepare.run(tmp_path / "set", [f"npz path={tmp_path}/bare.npz"])


def test_the_source_works_from_the_shell(npz, tmp_path):
    script = ROOT / "docs" / "extending" / "source.py"
    command = [
        sys.executable,
        script,
        "prepare",
        "set",
        "--source",
        "npz path=mine.npz split=train classes=0,1 limit=1",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (
        0, "set: 2 images, 2 classes, 1 shards, 2 train\n",
    ), done.stderr  # fmt: skip


def test_the_backbone_is_extracted_with_its_weights_and_classifier(tmp_path, make_set):
    network = example("backbone").LittleConvnet(num_classes=3)
    save_file(network.state_dict(), tmp_path / "little.safetensors")
    extract.run(
        make_set(tmp_path),
        tmp_path / "a.zarr",
        views=[View("plain")],
        backbone="little_convnet",
        weights=str(tmp_path / "little.safetensors"),
        size=32,
        dtype="float32",
        classifier="own",
        block=8,
        device="cpu",
    )
    store = FeatureStore.open(tmp_path / "a.zarr")
    embedding = torch.from_numpy(store.embedding("plain"))
    assert embedding.shape == (25, 64)
    expected = torch.nn.functional.cross_entropy(
        network.classifier(embedding), torch.from_numpy(store.labels).long(), reduction="none"
    )
    np.testing.assert_allclose(store.read("loss")[:, 0], expected.detach(), rtol=1e-4)
    assert store.backbone["preprocessing"]["mean"] == [0.5, 0.5, 0.5]
