"""The scripts of docs/integrations.md: FiftyOne's fields, and cleanlab's suspects in our order."""

import sys
from pathlib import Path
from runpy import run_path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import softmax

from askance.features.store import FeatureStore

DOCS = Path(__file__).parents[1] / "docs"


@pytest.fixture
def scores(tmp_path, monkeypatch):
    """Return a table of scores of images in the current folder, one of them refused."""
    monkeypatch.chdir(tmp_path)
    columns = {
        "key": ["photos/b.jpg", str(tmp_path / "photos/a.jpg"), "photos/c.jpg", "x.tar/0"],
        "uncertainty": pa.array([0.5, 0.25, None, 2.0], pa.float32()),
        "percentile": [0.75, 0.125, None, 0.99],
        "refused": [None, None, "not an image", None],
    }
    return pa.table(columns)


class Dataset:
    """As much of a FiftyOne dataset as the script asks for."""

    name = "mine"

    def __init__(self, *paths):
        self.fields = {"filepath": [str(path) for path in paths]}

    def values(self, name):
        return self.fields[name]

    def set_values(self, name, values):
        self.fields[name] = values


def test_fields_are_written_to_the_samples_whose_files_were_scored(scores, tmp_path):
    dataset = Dataset(*(tmp_path / "photos" / f"{name}.jpg" for name in "abcd"))
    write = run_path(str(DOCS / "fiftyone_field.py"))["write"]
    assert write(dataset, scores) == "mine: 2 of 4 samples have a score"
    assert dataset.fields["uncertainty"] == [0.25, 0.5, None, None]
    assert dataset.fields["percentile"] == [0.125, 0.75, None, None]


def test_a_dataset_of_other_files_is_told_and_left_alone(scores):
    dataset = Dataset("/elsewhere/a.jpg")
    write = run_path(str(DOCS / "fiftyone_field.py"))["write"]
    with pytest.raises(ValueError, match="expected keys that are files of mine, got 3 others"):
        write(dataset, scores)
    assert list(dataset.fields) == ["filepath"]


def test_fiftyone_takes_the_fields(scores, tmp_path, monkeypatch, capsys):
    fiftyone = pytest.importorskip("fiftyone")
    dataset = fiftyone.Dataset()
    files = [str(tmp_path / "photos" / f"{name}.jpg") for name in "abcd"]
    dataset.add_samples([fiftyone.Sample(filepath=file) for file in files])
    pq.write_table(scores, tmp_path / "scores.parquet")
    monkeypatch.setattr(sys, "argv", ["", dataset.name, str(tmp_path / "scores.parquet")])
    run_path(str(DOCS / "fiftyone_field.py"), run_name="__main__")
    assert "2 of 4 samples have a score" in capsys.readouterr().out
    assert dataset.values("percentile") == [0.125, 0.75, None, None]
    assert dataset.sort_by("uncertainty", reverse=True).first().filepath == files[1]
    dataset.delete()


@pytest.fixture
def cleanlab_issues():
    pytest.importorskip("cleanlab")
    return run_path(str(DOCS / "cleanlab_issues.py"))


def test_of_equally_suspect_labels_that_of_the_surest_image_comes_first(cleanlab_issues):
    random = np.random.default_rng(0)
    column = np.arange(300) % 3
    probability = softmax(3 * np.eye(3)[column] + random.normal(size=(300, 3)) / 9, axis=1)
    wrong = np.array([7, 100, 200])
    probability[wrong] = softmax(3 * np.eye(3)[column[wrong] - 1], axis=1)
    uncertainty = random.uniform(size=300)
    found = cleanlab_issues["suspects"](column, probability, uncertainty)
    assert found.tolist() == wrong[np.argsort(uncertainty[wrong])].tolist()


@pytest.fixture
def mislabelled(whole_run, monkeypatch):
    """Return where a run has its upstream store, probe and head; three of its labels change."""
    labels = FeatureStore.open(whole_run / "stores" / "upstream.zarr").labels.copy()
    labels[:3] = (labels[:3] + 1) % 4
    monkeypatch.setattr(FeatureStore, "labels", labels)
    stores = [str(whole_run / "stores" / f"upstream{end}.zarr") for end in ("", ".probe")]
    return [*stores, str(whole_run / "models" / "ranking-0.safetensors")]


def test_the_suspects_of_a_run_are_printed(cleanlab_issues, mislabelled, capsys):
    cleanlab_issues["main"](*mislabelled)
    first, *lines = capsys.readouterr().out.splitlines()
    assert first == f"{len(lines)} of 40 labels are suspect; the first ten:"
    found = {line.partition(":")[0]: line for line in lines}
    assert {"k000", "k001", "k002"} <= found.keys()
    assert found["k001"].startswith("k001: 2, or 1? percentile 0.")


def test_labels_of_other_classes_than_the_probes_are_told(
    cleanlab_issues, mislabelled, monkeypatch, capsys
):
    found = iter([{0: "cat"}, {0: "dog"}])
    monkeypatch.setattr(FeatureStore, "index", property(lambda _: Index(next(found))))
    with pytest.raises(ValueError, match="expected the classes of .*probe.zarr, got others in"):
        cleanlab_issues["main"](*mislabelled)
    assert not capsys.readouterr().out


class Index(NamedTuple):
    """As much of an index as the script looks at."""

    classes: dict[int, str]
