"""VTAB's sets: their layouts, their splits, and how they are fetched."""

import hashlib
import io
import tarfile
import zipfile

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from askance.features.sources import SOURCES, published, vtab
from askance.features.sources.cifar100 import Cifar100
from askance.features.sources.published import fetch, unpacked
from askance.features.sources.selection import parse
from askance.features.sources.svhn import Svhn
from askance.features.sources.tfds import deal, order
from askance.features.sources.vtab import Caltech101, Dtd, Flowers102, Pets, Resisc45, Sun397
from askance.pipeline import retries
from askance.pipeline.artifacts import sha256
from askance.stages.prepare import run


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASKANCE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def rows(table, *columns):
    return list(zip(*(table[column].to_pylist() for column in columns), strict=True))


def write(root, *files):
    """Write files below `root` whose content is their name."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_bytes(file.encode())
    return root


def pixels(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


# ---- the order of TensorFlow Datasets


def test_the_order_is_that_of_tensorflow_datasets():
    # The ids of tfds.load("cifar10", split="train") begin so, in many a published notebook:
    # train_16399, train_01680, train_47917, train_17307, train_27051, train_48736, train_26263.
    assert order(range(50_000))[:7] == [16399, 1680, 47917, 17307, 27051, 48736, 26263]


def test_the_order_depends_on_the_split():
    assert order(range(10), "test") == sorted(
        range(10), key=lambda n: hashlib.md5(f"test{n}".encode()).hexdigest()
    )


@given(st.lists(st.text(max_size=3), unique=True, max_size=40), st.integers(0, 100))
def test_parts_are_runs_of_the_order_and_the_last_takes_the_rest(keys, percent):
    parts = deal(keys, train=percent, val=100 - percent)
    count = percent * len(keys) // 100
    assert [parts[row] for row in order(keys)] == ["train"] * count + ["val"] * (len(keys) - count)


@pytest.mark.parametrize(
    ("count", "percent", "sizes"),
    [  # 306, 736 and 5,000 of `val` are witnessed by lists that the URL benchmark ships
        (3_059, {"train": 90, "val": 10}, {"train": 2_753, "val": 306}),
        (3_680, {"train": 80, "val": 20}, {"train": 2_944, "val": 736}),
        (50_000, {"train": 90, "val": 10}, {"train": 45_000, "val": 5_000}),
        (31_500, {"train": 60, "val": 20, "test": 20}, {"train": 18_900, "val": 6_300}),
        (73_257, {"train": 90, "val": 10}, {"train": 65_931, "val": 7_326}),
    ],
)
def test_parts_have_vtab_s_sizes(count, percent, sizes):
    parts = deal(range(count), **percent)
    assert {name: parts.count(name) for name in sizes} == sizes


# ---- folders of files


def test_caltech101_trains_on_thirty_of_each_class(tmp_path, monkeypatch):
    counts = {"BACKGROUND_Google": 31, "ant": 35}
    for name, count in counts.items():
        files = [f"101_ObjectCategories/{name}/image_{n:04}.jpg" for n in range(1, count + 1)]
        write(tmp_path, *files, *(f"101_ObjectCategories/{name}/{x}" for x in ("tmp", "._1.jpg")))
    write(tmp_path, "101_ObjectCategories/.hidden/1.jpg")
    monkeypatch.setattr(Caltech101, "size", (2, 66))
    source = Caltech101(str(tmp_path))
    listed = source.samples()
    assert rows(listed, "key", "class")[0] == (
        "101_ObjectCategories/BACKGROUND_Google/image_0001",
        "BACKGROUND_Google",
    )
    splits = rows(listed, "class", "split")
    tests = {name: splits.count((name, "test")) for name in counts}
    assert tests == {"BACKGROUND_Google": 1, "ant": 5}
    assert listed["split"].to_pylist().count("val") == 6
    assert source.image(65) == ("jpg", b"101_ObjectCategories/ant/image_0035.jpg")


def test_caltech101_s_lots_depend_on_the_image_alone(tmp_path, monkeypatch):
    files = [f"101_ObjectCategories/ant/image_{n:04}.jpg" for n in range(40)]
    monkeypatch.setattr(Caltech101, "size", (1, 40))
    first = Caltech101(str(write(tmp_path / "a", *files))).samples()
    monkeypatch.setattr(Caltech101, "size", (2, 80))
    more = [file.replace("ant", "bee") for file in files]
    both = Caltech101(str(write(tmp_path / "b", *reversed(files + more)))).samples()
    ants = both.filter(pa.compute.equal(both["class"], "ant"))
    tested = [[s == "test" for s in t["split"].to_pylist()] for t in (first, ants)]
    assert tested[0] == tested[1]


def test_dtd_has_its_first_partition(tmp_path, monkeypatch):
    write(tmp_path, *(f"images/{name}_{n}.jpg" for name in ("dots/dots", "grid/g") for n in (1, 2)))
    (tmp_path / "labels").mkdir()
    for split, lines in {
        "train": "grid/g_1.jpg\ndots/dots_2.jpg\n",
        "val": "grid/g_2.jpg\n",
    }.items():
        (tmp_path / f"labels/{split}1.txt").write_text(lines)
    (tmp_path / "labels/test1.txt").write_text("dots/dots_1.jpg\n")
    (tmp_path / "labels/train2.txt").write_text("other\n")
    monkeypatch.setattr(Dtd, "size", (2, 4))
    source = Dtd(str(tmp_path))
    assert rows(source.samples(), "key", "class", "split") == [
        ("images/grid/g_1", "grid", "train"),
        ("images/dots/dots_2", "dots", "train"),
        ("images/grid/g_2", "grid", "val"),
        ("images/dots/dots_1", "dots", "test"),
    ]
    assert source.image(3) == ("jpg", b"images/dots/dots_1.jpg")


def test_flowers102_counts_its_classes_from_zero(tmp_path, monkeypatch):
    write(tmp_path, *(f"jpg/image_{n:05}.jpg" for n in (1, 2, 3, 4)))
    savemat(tmp_path / "imagelabels.mat", {"labels": np.array([[77, 1, 102, 77]], np.uint8)})
    ids = {"trnid": [[3]], "valid": [[1]], "tstid": [[4, 2]]}
    savemat(tmp_path / "setid.mat", {name: np.array(n, np.uint16) for name, n in ids.items()})
    monkeypatch.setattr(Flowers102, "size", (3, 4))
    source = Flowers102(str(tmp_path))
    assert rows(source.samples(), "key", "class", "split") == [
        ("jpg/image_00003", "101", "train"),
        ("jpg/image_00001", "76", "val"),
        ("jpg/image_00004", "76", "test"),
        ("jpg/image_00002", "0", "test"),
    ]
    assert source.image(1) == ("jpg", b"jpg/image_00001.jpg")


def test_pets_keep_their_test_split_and_vtab_s_order_of_the_others(tmp_path, monkeypatch):
    names = [f"{kind}_{n}" for kind in ("Abyssinian", "american_bulldog") for n in range(1, 7)]
    write(tmp_path, *(f"images/{name}.jpg" for name in names))
    (tmp_path / "annotations").mkdir()
    for split, part in {"trainval": names[::2] + names[1:9:2], "test": names[9::2]}.items():
        lines = "".join(f"{name} 1 1 1\n" for name in part)
        (tmp_path / f"annotations/{split}.txt").write_text(lines)
    monkeypatch.setattr(Pets, "size", (2, 12))
    listed = Pets(str(tmp_path)).samples()
    classes = dict(rows(listed, "key", "class"))
    assert classes["images/american_bulldog_6"] == "american_bulldog"
    trained = sorted(
        names[::2] + names[1:9:2],
        key=lambda name: hashlib.md5(f"train{name}.jpg".encode()).hexdigest(),
    )
    expected = {f"images/{n}": "train" if r < 8 else "val" for r, n in enumerate(trained)}
    expected |= {f"images/{name}": "test" for name in names[9::2]}
    assert dict(rows(listed, "key", "split")) == expected


def test_resisc45_is_cut_in_vtab_s_order(tmp_path, monkeypatch):
    files = [f"{kind}/{kind}_{n:03}.jpg" for kind in ("airplane", "beach") for n in range(1, 6)]
    others = ["readme.txt", "beach/._beach_001.jpg", ".hidden/beach_001.jpg"]
    monkeypatch.setattr(Resisc45, "size", (2, 10))
    listed = Resisc45(str(write(tmp_path, *files, *others))).samples()
    ordered = sorted(
        files, key=lambda f: hashlib.md5(f"train{f.replace('/', '_')}".encode()).hexdigest()
    )
    splits = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    expected = {f.removesuffix(".jpg"): s for f, s in zip(ordered, splits, strict=True)}
    assert dict(rows(listed, "key", "split")) == expected
    for key, name in rows(listed, "key", "class"):
        assert key.startswith(f"{name}/{name}_")


def test_sun397_has_the_lists_of_tensorflow_datasets(tmp_path, cache, monkeypatch):
    lists = {
        "tr": "/a/abbey/sun_1.jpg\n/t/track/outdoor/sun_aophkoiosslinihb.jpg\n",
        "va": "/c/church/outdoor/sun_2.jpg\n",
        "te": "/a/abbey/sun_3.jpg\n",
    }
    cache.mkdir()
    with zipfile.ZipFile(cache / "tensorflow-datasets-4.9.10.whl", "w") as wheel:
        for split, lines in lists.items():
            name = f"tensorflow_datasets/image_classification/sun397_tfds_{split}.txt"
            wheel.writestr(name, lines)
    monkeypatch.setattr(vtab, "TFDS_SHA256", sha256(cache / "tensorflow-datasets-4.9.10.whl"))
    monkeypatch.setattr(Sun397, "size", (2, 3))
    files = [line[1:] for lines in lists.values() for line in lines.split()]
    source = Sun397(str(write(tmp_path / "x", "ClassName.txt", "a/abbey/sun_4.jpg", *files)))
    assert rows(source.samples(), "key", "class", "split") == [
        ("a/abbey/sun_1", "abbey", "train"),
        ("c/church/outdoor/sun_2", "church/outdoor", "val"),
        ("a/abbey/sun_3", "abbey", "test"),
    ]
    assert source.image(1) == ("jpg", b"c/church/outdoor/sun_2.jpg")


# ---- arrays


def write_cifar100(root, counts=(20, 3)):
    """Write images that count up; the fine label is the row, modulo 3."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "fine_label_names.txt").write_text("apple\naquarium_fish\nbaby\n")
    images = np.random.default_rng(0).integers(256, size=(sum(counts), 32, 32, 3), dtype=np.uint8)
    records = np.zeros((len(images), 3074), np.uint8)
    records[:, 0] = 9  # the coarse label
    records[:, 1] = np.arange(len(images)) % 3
    records[:, 2:] = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
    records[: counts[0]].tofile(root / "train.bin")
    records[counts[0] :].tofile(root / "test.bin")
    return images


def test_cifar100_keeps_order_and_pixels(tmp_path):
    images = write_cifar100(tmp_path)
    source = Cifar100(str(tmp_path))
    listed = source.samples()
    assert rows(listed.slice(20), "key", "class", "split") == [
        ("test/00000", "baby", "test"),
        ("test/00001", "apple", "test"),
        ("test/00002", "aquarium_fish", "test"),
    ]
    names = ["apple", "aquarium_fish", "baby"]
    assert listed["class"].to_pylist() == [names[row % 3] for row in range(23)]
    valued = [row for row, split in enumerate(listed["split"].to_pylist()) if split == "val"]
    assert valued == sorted(order(range(20))[18:])
    for row in (0, 19, 20, 22):
        np.testing.assert_array_equal(pixels(source.image(row)[1]), images[row])


def test_cifar100_that_is_cut_is_refused(tmp_path):
    write_cifar100(tmp_path)
    (tmp_path / "test.bin").write_bytes(b"1" * 3073)
    with pytest.raises(ValueError, match=r"records of 3074 bytes in .*test.bin, got 3073 bytes"):
        Cifar100(str(tmp_path)).samples()
    (tmp_path / "test.bin").write_bytes(b"\x05" * 3074)
    with pytest.raises(ValueError, match=r"labels below 3, the number of names, got 5"):
        Cifar100(str(tmp_path)).samples()


def write_svhn(root, counts=(10, 2)):
    """Write images as the publisher does: the last axis counts them, and 10 is the digit 0."""
    root.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).integers(256, size=(sum(counts), 32, 32, 3), dtype=np.uint8)
    parts = {"train": images[: counts[0]], "test": images[counts[0] :]}
    for part, found in parts.items():
        digits = np.arange(1, len(found) + 1, dtype=np.uint8)[:, None]
        content = {"X": np.moveaxis(found, 0, -1), "y": digits}
        savemat(root / f"{part}_32x32.mat", content)
    return images


def test_svhn_keeps_order_and_pixels(tmp_path):
    images = write_svhn(tmp_path)
    source = Svhn(str(tmp_path))
    listed = source.samples()
    assert listed["class"].to_pylist() == [*"1234567890", *"12"]
    assert listed["key"].to_pylist()[9:11] == ["train/000009", "test/000000"]
    splits = listed["split"].to_pylist()
    assert splits.index("val") == order(range(10))[9]
    assert splits.count("train") == 9
    for row in (0, 9, 10, 11):
        np.testing.assert_array_equal(pixels(source.image(row)[1]), images[row])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"X": np.zeros((32, 32, 3, 2)), "y": np.ones((2, 1))}, "2 images of 32 x 32 .* float64"),
        ({"X": np.zeros((8, 8, 3, 2), np.uint8), "y": np.ones((2, 1))}, r"uint8 \(2, 8, 8, 3\)"),
        ({"y": np.ones((2, 1))}, r"expected arrays X and y in .*train_32x32.mat, got KeyError"),
        (None, "expected arrays X and y in .*train_32x32.mat, got ValueError"),
    ],
)
def test_a_bad_file_of_svhn_is_named(tmp_path, content, message):
    write_svhn(tmp_path)
    if content is None:
        (tmp_path / "train_32x32.mat").write_bytes(b"no matlab" * 30)
    else:
        savemat(tmp_path / "train_32x32.mat", content)
    with pytest.raises(ValueError, match=message):
        Svhn(str(tmp_path)).samples()


# ---- what is missing


@pytest.mark.parametrize("name", ["caltech101", "cifar100", "dtd", "flowers102", "pets", "svhn"])
def test_a_folder_of_something_else_is_named(name, tmp_path):
    source = SOURCES[name](str(tmp_path))
    with pytest.raises(
        ValueError,
        match=rf"expected {name} as its publisher packs it, got no '.*' in {tmp_path}: give path=",
    ):
        source.samples()


def test_a_folder_without_images_is_named(tmp_path):
    with pytest.raises(ValueError, match=rf"resisc45 as .* packs it, got no image in {tmp_path}"):
        Resisc45(str(tmp_path)).samples()


def test_resisc45_needs_a_path():
    with pytest.raises(ValueError, match="expected path=FOLDER for resisc45, got none: its publ"):
        parse("resisc45").samples()


def test_a_part_of_a_set_is_refused(tmp_path):
    write(tmp_path, "beach/beach_001.jpg")
    with pytest.raises(ValueError, match="expected 31,500 images of 45 classes in .*, got 1 of 1"):
        Resisc45(str(tmp_path)).samples()


def test_an_image_that_is_listed_and_not_there_is_named(tmp_path):
    write(tmp_path, "images/x.jpg", "annotations/x")
    for split in ("trainval", "test"):
        (tmp_path / f"annotations/{split}.txt").write_text(f"cat_{split} 1 1 1\n")
    with pytest.raises(ValueError, match=r"got no .*images/cat_trainval.jpg \(2 missing\)"):
        Pets(str(tmp_path)).samples()


@pytest.mark.parametrize("line", ["../../secret.jpg", "dots/../../../secret.jpg"])
def test_a_list_that_leads_out_of_its_folder_is_refused(tmp_path, line):
    write(tmp_path, "secret.jpg", "dtd/images/dots/1.jpg")
    write(tmp_path / "dtd", *(f"labels/{split}1.txt" for split in ("train", "val", "test")))
    (tmp_path / "dtd/labels/train1.txt").write_text(f"{line}\n")
    with pytest.raises(ValueError, match=rf"images below .*/dtd, got the path 'images/{line}' in"):
        Dtd(str(tmp_path / "dtd")).samples()


# ---- fetching


@pytest.fixture
def server(tmp_path):
    """Return a function that puts a file on a server; it gives its address and SHA-256."""

    def put(name, content):
        path = tmp_path / "server" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        return path.as_uri(), sha256(path)

    return put


def tar(folder, compression="gz"):
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode=f"w:{compression}") as file:
        file.add(folder, folder.name)
    return content.getvalue()


def test_a_set_without_a_path_is_fetched_and_unpacked_once(tmp_path, cache, server, monkeypatch):
    write_cifar100(tmp_path / "cifar-100-binary")
    monkeypatch.setattr(
        Cifar100, "files", (server("x.tar.gz", tar(tmp_path / "cifar-100-binary")),)
    )
    run(tmp_path / "data", ["cifar100 split=test"])
    assert (cache / "archives/cifar100/x.tar.gz").is_file()
    (cache / "archives/cifar100/x.tar.gz").unlink()  # not needed any more
    (tmp_path / "server/x.tar.gz").unlink()
    assert len(Cifar100().samples()) == 23


def test_tars_loose_files_and_a_zip_of_tars_are_unpacked(tmp_path, cache, server):
    write(tmp_path / "a", "1.jpg")
    inside = io.BytesIO()
    with zipfile.ZipFile(inside, "w") as file:
        file.writestr("z/b.tar.gz", tar(write(tmp_path / "b", "2.jpg")))
        file.writestr("__MACOSX/z/._b.tar.gz", b"no tar")
    files = (
        server("a.tar.gz", tar(tmp_path / "a", compression="")),  # some are not compressed
        server("z.zip", inside.getvalue()),
        server("y.mat", b"3"),
    )
    folder = unpacked("x", files)
    assert folder == cache / "x"
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("[!.]*") if p.is_file()}
    assert found == {"a/1.jpg", "z/b/2.jpg", "y.mat"}


def test_an_archive_that_leaves_its_folder_is_refused(cache, server, write_tar, tmp_path):
    archive = write_tar(tmp_path / "x.tar", {"../../evil": b"1"})
    with pytest.raises(tarfile.OutsideDestinationError):
        unpacked("x", (server("x.tar", archive.read_bytes()),))
    assert not (cache / "x").exists()
    assert not list(tmp_path.rglob("evil"))


def test_a_file_put_by_hand_is_taken(cache, server):
    url, digest = server("x.mat", b"1")
    (cache / "archives/x").mkdir(parents=True)
    (cache / "archives/x/x.mat").write_bytes(b"1")
    gone = url.replace("server", "gone")
    assert (unpacked("x", ((gone, digest),)) / "x.mat").read_bytes() == b"1"


def test_a_damaged_file_is_named_and_fetched_again(tmp_path, server, capsys):
    url, digest = server("x", b"content")
    (tmp_path / "x").write_bytes(b"conten")
    assert fetch(url, tmp_path / "x", digest).read_bytes() == b"content"
    assert f"x is damaged: its SHA-256 is not {digest}\nfetching {url}" in capsys.readouterr().err


def test_another_file_is_refused_and_nothing_kept(tmp_path, server):
    url, digest = server("x", b"content")
    with pytest.raises(
        ValueError, match=rf"{url} with the SHA-256 0{{64}}, got {digest}: the serv"
    ):
        fetch(url, tmp_path / "cache/x", "0" * 64)
    assert not list((tmp_path / "cache").iterdir())


def test_a_passing_failure_is_tried_again(tmp_path, server, monkeypatch):
    monkeypatch.setattr(retries, "LONGEST", 0.0)
    url, digest = server("x", b"content")
    calls = []
    original = published.urlopen

    def flaky(*args, **options):
        calls.append(args)
        if len(calls) < retries.ATTEMPTS:
            raise TimeoutError("timed out")
        return original(*args, **options)

    monkeypatch.setattr(published, "urlopen", flaky)
    assert fetch(url, tmp_path / "x", digest).read_bytes() == b"content"
    assert len(calls) == retries.ATTEMPTS


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("caltech101", "caltech-101.zip"),
        ("cifar100", "cifar-100-binary.tar.gz"),
        ("dtd", "dtd-r1.0.1.tar.gz"),
        ("flowers102", "102flowers.tgz"),
        ("pets", "images.tar.gz"),
        ("sun397", "SUN397.tar.gz"),
        ("svhn", "train_32x32.mat"),
    ],
)
def test_without_a_network_the_place_for_the_archive_is_named(name, file, cache, monkeypatch):
    def offline(url, **options):
        raise OSError("Network is unreachable")

    monkeypatch.setattr(retries, "LONGEST", 0.0)
    monkeypatch.setattr(published, "urlopen", offline)
    with pytest.raises(
        OSError,
        match=rf"expected the file https?://.*/{file}, got Network is unreachable: check the"
        rf" network, or put the file at {cache}/archives/{name}/{file}",
    ):
        parse(name).samples()
    assert not (cache / name).exists()
