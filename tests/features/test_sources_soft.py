"""CIFAR-10H and the sets of DCIC: images that several people labelled."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from askance.features.index import read_index
from askance.features.sources import cifar10h, soft
from askance.features.sources.cifar10 import Cifar10
from askance.features.sources.cifar10h import Cifar10h
from askance.features.sources.selection import parse
from askance.features.sources.soft import Cifar10hFolds, Soft, Turkey
from askance.pipeline import retries
from askance.pipeline.artifacts import sha256
from askance.stages.prepare import run


def rows(table, *columns):
    return list(zip(*(table[column].to_pylist() for column in columns), strict=True))


# ---- CIFAR-10H


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASKANCE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def cifar(monkeypatch):
    """CIFAR-10 with 7 training images and 4 test images."""
    monkeypatch.setattr(Cifar10, "_labels", {"train": [0] * 7, "test": [3, 8, 8, 0]})
    monkeypatch.setattr(Cifar10, "image", lambda source, row: ("png", b"%d" % row))


def saved(path, votes):
    np.save(path, np.array(votes))
    return str(path)


def test_cifar10h_has_the_test_images_with_votes_and_the_label_of_most(cifar, tmp_path):
    votes = np.zeros((4, 10), np.int64)
    votes[[0, 1, 2, 2, 3, 3], [3, 8, 8, 0, 2, 7]] = [50, 51, 2, 40, 25, 25]
    source = Cifar10h(saved(tmp_path / "votes.npy", votes))
    listed = source.samples()
    assert rows(listed, "key", "class", "name", "split") == [
        ("test/00000", "3", "cat", "test"),
        ("test/00001", "8", "ship", "test"),
        ("test/00002", "0", "airplane", "test"),
        ("test/00003", "2", "bird", "test"),  # of two with most votes, the first
    ]
    np.testing.assert_array_equal(listed["votes"].to_pylist(), votes)
    assert [source.image(row) for row in (3, 0)] == [("png", b"10"), ("png", b"7")]


@pytest.mark.parametrize(
    ("votes", "message"),
    [
        (np.ones((10_000, 10), int), r"expected whole numbers \(4, 10\) in .*, got int64 \(10000,"),
        (np.ones((4, 10)), r"whole numbers \(4, 10\) in .*votes.npy, got float64 \(4, 10\)"),
        (
            np.diag([5, 0, 5, 0, 5])[:4, [*range(5), *[1] * 5]],
            "the votes of people .* none in row 1",
        ),
        (np.eye(4, 10, dtype=int) * 5 - 1, r"expected the votes of people in .*, got -1\.\.4"),
        (np.full((4, 10), 2**31), r"the votes of people in .*, got 2147483648\.\.2147483648"),
        (np.full((4, 10), None), "an array of counts .* got .*allow_pickle=False"),
    ],
)
def test_bad_votes_are_explained(cifar, tmp_path, votes, message):
    np.save(tmp_path / "votes.npy", votes, allow_pickle=True)
    with pytest.raises(ValueError, match=message):
        Cifar10h(str(tmp_path / "votes.npy")).samples()


@pytest.mark.parametrize("content", [b"", b"no array"])
def test_a_file_that_is_no_array_is_named(cifar, tmp_path, content):
    (tmp_path / "votes.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"an array of counts \(.npy\) in .*votes.npy, got"):
        Cifar10h(str(tmp_path / "votes.npy")).samples()


def test_an_archive_of_arrays_is_refused(cifar, tmp_path):
    np.savez(tmp_path / "votes.npz", np.ones((4, 10), int))
    with pytest.raises(ValueError, match=r"whole numbers \(4, 10\) in .*votes.npz, got an archive"):
        Cifar10h(str(tmp_path / "votes.npz")).samples()


def test_votes_are_fetched_into_the_cache_once(cifar, tmp_path, cache, monkeypatch, capsys):
    there = Path(saved(tmp_path / "there.npy", np.ones((4, 10), int)))
    monkeypatch.setattr(cifar10h, "URL", there.as_uri())
    monkeypatch.setattr(cifar10h, "SHA256", sha256(there))
    assert Cifar10h().samples()["class"].to_pylist() == ["0"] * 4
    there.unlink()
    assert Cifar10h().samples()["votes"].to_pylist() == [[1] * 10] * 4
    assert [path.name for path in cache.iterdir()] == ["cifar10h-counts.npy"]
    assert capsys.readouterr().err.count("fetching") == 1


def test_without_a_network_the_place_for_the_votes_is_named(cifar, tmp_path, cache, monkeypatch):
    monkeypatch.setattr(retries, "LONGEST", 0.0)
    monkeypatch.setattr(cifar10h, "URL", (tmp_path / "gone.npy").as_uri())
    with pytest.raises(
        OSError,
        match=rf"expected the file file://.*gone.npy, got .*No such file.*: check the network, or"
        rf" put the file at {cache}/cifar10h-counts.npy",
    ):
        Cifar10h().samples()
    assert not list(cache.iterdir())


def test_other_votes_than_the_pinned_ones_are_refused(cifar, tmp_path, cache, monkeypatch):
    there = Path(saved(tmp_path / "there.npy", np.ones((4, 10), int)))
    monkeypatch.setattr(cifar10h, "URL", there.as_uri())
    with pytest.raises(ValueError, match=r"with the SHA-256 9b36b455.*, got .* which is not used"):
        Cifar10h().samples()
    assert not list(cache.iterdir())


# ---- DCIC


def annotated(root, title, votes, more=()):
    """Write a set of DCIC: {file: the labels it got}, each label of another person."""
    people = max(len(labels) for labels in votes.values())
    annotations = [
        {
            "dataset_name": title,
            "annotations": [
                {"image_path": f"{title}/{file}", "class_label": labels[person]}
                for file, labels in votes.items()
                if person < len(labels)
            ],
        }
        for person in range(people)
    ]
    for number, file in enumerate([*votes, *more]):
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        Image.new("RGB", (8, 8), (number, 0, 0)).save(content, "png")
        (root / file).write_bytes(content.getvalue())
    (root / "annotations.json").write_text(json.dumps(annotations))
    return str(root)


VOTES = {
    "fold2/b.png": ["worm", "star", "worm"],
    "fold1/a.1.png": ["star", None, "coral"],  # a tie; one person did not know
    "fold3/c.png": ["star"],
    "fold4/d.png": ["coral", "coral"],
    "fold5/e.png": ["worm"],
}


@pytest.fixture
def animals(tmp_path, monkeypatch):
    """A set of 5 images with votes for 3 classes, and one that nobody labelled."""
    monkeypatch.setattr(soft.Benthic, "size", (3, 5))
    return annotated(tmp_path / "x", "Benthic", VOTES, more=["fold1/nobody.png"])


def test_the_folds_are_the_benchmark_s_splits_and_the_label_has_most_votes(animals):
    source = soft.Benthic(animals)
    listed = source.samples()
    assert rows(listed, "key", "class", "name", "split", "votes") == [
        ("fold1/a_1", "0", "coral", "val", [1, 1, 0]),
        ("fold2/b", "2", "worm", "test", [0, 1, 2]),
        ("fold3/c", "1", "star", "train", [0, 1, 0]),
        ("fold4/d", "0", "coral", "train", [2, 0, 0]),
        ("fold5/e", "2", "worm", "train", [0, 0, 1]),
    ]
    assert source.image(1) == ("png", (Path(animals) / "fold2/b.png").read_bytes())


def test_votes_come_through_prepare_with_all_their_classes(animals, tmp_path):
    run(tmp_path / "data", [f"benthic path={animals} split=test,train classes=!coral"])
    index = read_index(tmp_path / "data")
    order = np.argsort(index.keys)
    found = [index.table.slice(int(row), 1).to_pylist()[0] for row in order]
    assert [(r["key"], r["label"], r["split"], r["votes"]) for r in found] == [
        ("fold2/b", 2, "test", [0, 1, 2]),
        ("fold3/c", 1, "train", [0, 1, 0]),
        ("fold5/e", 2, "train", [0, 0, 1]),
    ]
    assert index.classes == {1: "star", 2: "worm"}


@pytest.mark.parametrize("name", ["benthic", "cifar10h-folds", "pig", "treeversity", "turkey"])
def test_each_set_of_the_benchmark_has_a_name(name, tmp_path, monkeypatch):
    source = parse(f"{name} path={tmp_path}").source
    assert isinstance(source, Soft)
    monkeypatch.setattr(type(source), "size", (3, 5))
    annotated(tmp_path, source.title, VOTES)
    assert len(source.samples()) == 5


def test_the_fold_sizes_add_up_to_those_of_the_benchmark():
    # src/datasets/*.py of the benchmark's code; folds 1 and 2 also of the crops that URL ships.
    folds = {
        soft.Benthic: [907, 955, 958, 990, 1057],
        Cifar10hFolds: [1953, 1981, 2067, 1969, 2030],
        soft.Pig: [1947, 2129, 2007, 2039, 2115],
        soft.Treeversity: [1820, 1912, 1905, 1966, 1886],
        Turkey: [1384, 1761, 1672, 1431, 1792],
    }
    assert {kind: kind.size[1] for kind in folds} == {k: sum(f) for k, f in folds.items()}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"expected lists of annotations, .* in .*annotations.json, got JSONDecodeError"),
        ("[1]", "expected lists of annotations, .* got TypeError"),
        ('[{"annotations": [{"image_path": "x"}]}]', r"got KeyError\('class_label'\): unpack"),
        (
            '[{"annotations": [{"image_path": "Pig/fold1/a.png", "class_label": "x"}]}]',
            "expected images like Turkey/fold1/NAME in .*, got 'Pig/fold1/a.png': is path=",
        ),
        (
            '[{"annotations": [{"image_path": "Turkey/fold1/../a.png", "class_label": "x"}]}]',
            "images below .*, got the path 'fold1/../a.png' in the list .*annotations.json",
        ),
        ('[{"annotations": [{"image_path": 7, "class_label": "x"}]}]', "got 7: is path="),
        (
            '[{"annotations": [{"image_path": "Turkey/fold1/a.png", "class_label": 1}]}]',
            "expected the name of a class in .*, got 1",
        ),
        (
            '[{"annotations": [{"image_path": "Turkey/fold1/a.png", "class_label": "x"}]}]',
            r"expected the 1 images that .*annotations.json lists, got no .*fold1/a.png \(1 miss",
        ),
        ("[]", "expected a label at least in .*annotations.json, got none"),
    ],
)
def test_bad_annotations_are_explained(tmp_path, content, message):
    (tmp_path / "annotations.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Turkey(str(tmp_path)).samples()


def test_a_missing_set_says_where_to_get_it(tmp_path):
    with pytest.raises(
        ValueError, match=r"annotations.json, got no such folder: get the set's zip"
    ):
        Turkey(str(tmp_path / "gone")).samples()


def test_a_part_of_a_set_is_refused(tmp_path):
    path = annotated(tmp_path, "Turkey", VOTES)
    with pytest.raises(ValueError, match="expected 8,040 images of 3 classes in .*, got 5 of 3"):
        Turkey(path).samples()
