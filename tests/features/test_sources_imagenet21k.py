from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from askance.features.index import read_index
from askance.features.reader import image
from askance.features.sources import imagenet21k
from askance.features.sources.imagenet21k import ImageNet21k
from askance.features.sources.selection import parse
from askance.pipeline.vision import import_torchvision
from askance.stages.prepare import run

FISH, BIRD, DOG = "n01440764", "n01503061", "n02084071"


def rows(table, *columns):
    return list(zip(*(table[column].to_pylist() for column in columns), strict=True))


@pytest.fixture
def wnids(tmp_path):
    """A list in which the classes' numbers are not those of their order."""
    path = tmp_path / "wnids.txt"
    path.write_text(f"n00000001\n{BIRD} bird\n{DOG}\n{FISH}\ttench, Tinca tinca\n")
    return str(path)


@pytest.fixture
def folders(tmp_path):
    """Class folders with two images each, one of them deeper, and what is none."""
    root = tmp_path / "folders"
    for name in (FISH, BIRD):
        for file in (f"{name}_10.JPEG", f"{name}_2.JPEG", ".hidden.JPEG", ".git/x.JPEG", "a.txt"):
            (root / name / file).parent.mkdir(parents=True, exist_ok=True)
            (root / name / file).write_bytes(f"{name}/{file}".encode())
    (root / BIRD / "more").mkdir()
    (root / BIRD / "more" / "x.y.png").write_bytes(b"deep")
    (root / "README.txt").touch()
    (root / ".cache").mkdir()
    return root


@pytest.fixture
def tars(tmp_path, write_tar):
    """A tar per class; the names inside with and without the class's folder."""
    root = tmp_path / "tars"
    write_tar(root / f"{FISH}.tar", {f"{FISH}_{n}.JPEG": b"fish%d" % n for n in (10, 2)})
    write_tar(root / f"{BIRD}.tar", {f"{BIRD}/{BIRD}_7.JPEG": b"bird", "./._x.JPEG": b"hidden"})
    return root


def test_class_folders_get_their_columns_as_labels(folders, wnids):
    source = ImageNet21k(str(folders), wnids)
    assert rows(source.samples(), "key", "class", "name") == [
        (f"{FISH}/{FISH}_10", "3", FISH),
        (f"{FISH}/{FISH}_2", "3", FISH),
        (f"{BIRD}/{BIRD}_10", "1", BIRD),
        (f"{BIRD}/{BIRD}_2", "1", BIRD),
        (f"{BIRD}/more/x_y", "1", BIRD),
    ]
    assert source.image(1) == ("jpeg", f"{FISH}/{FISH}_2.JPEG".encode())
    assert source.image(4) == ("png", b"deep")


@pytest.mark.parametrize("pattern", ["", "/*.tar", "/{n01440764,n01503061}.tar"])
def test_class_tars_are_listed_where_they_lie(tars, wnids, pattern):
    found = ImageNet21k(f"{tars}{pattern}", wnids).samples()
    assert rows(found, "key", "class", "name", "position") == [
        (f"{FISH}/{FISH}_10", "3", FISH, 0),
        (f"{FISH}/{FISH}_2", "3", FISH, 1),
        (f"{BIRD}/{BIRD}_7", "1", BIRD, 0),
    ]
    for row, content in zip(found.to_pylist(), (b"fish10", b"fish2", b"bird"), strict=True):
        shard = Path(row["shard"]).read_bytes()
        assert shard[row["offset"] : row["offset"] + row["size"]] == content


def test_remote_class_tars_are_listed_as_local_ones(tars, wnids):
    for path in tars.iterdir():
        with fsspec.open(f"memory://w21/{path.name}", "wb") as file:
            file.write(path.read_bytes())
    local = ImageNet21k(str(tars), wnids).samples()
    remote = ImageNet21k("memory://w21/n*.tar", wnids).samples()
    assert remote.drop_columns("shard").equals(local.drop_columns("shard"))
    assert remote["shard"][0].as_py() == f"memory:///w21/{FISH}.tar"


def test_both_layouts_become_sets_with_the_same_labels(tmp_path, folders, tars, wnids):
    for name, path in (("loose", folders), ("placed", tars)):
        run(tmp_path / name, [f"imagenet21k path={path} wnids={wnids}"])
    loose, placed = (read_index(tmp_path / name) for name in ("loose", "placed"))
    assert loose.classes == placed.classes == {3: FISH, 1: BIRD}
    key = f"{FISH}/{FISH}_2"
    assert image(placed, placed.keys.index(key)) == b"fish2"
    assert image(loose, loose.keys.index(key)) == f"{FISH}/{FISH}_2.JPEG".encode()
    assert [p.name for p in (tmp_path / "placed").iterdir()] == ["index.parquet"]


def test_classes_can_be_chosen_by_their_wnids(tars, wnids):
    found = parse(f"imagenet21k path={tars} wnids={wnids} classes={BIRD}").samples()
    assert found["key"].to_pylist() == [f"{BIRD}/{BIRD}_7"]


def test_labels_are_columns_of_googles_classifier(tars):
    """Numbers by timm's own list, which its weights of augreg_in21k are sorted by."""
    import_torchvision()
    from timm.data import ImageNetInfo
    from timm.models import get_pretrained_cfg

    found = ImageNet21k(str(tars)).samples()
    info = ImageNetInfo("imagenet-21k-goog")
    columns = dict(zip(found["name"].to_pylist(), found["class"].to_pylist(), strict=True))
    assert {info.index_to_label_name(int(column)): n for n, column in columns.items()} == {
        FISH: FISH,
        BIRD: BIRD,
    }
    backbone = get_pretrained_cfg("vit_base_patch16_224.augreg_in21k")
    assert backbone.num_classes == info.num_classes() == 21_843
    label = ImageNet21k(f"{tars}/{FISH}.tar", "timm:imagenet-1k").samples()["class"].to_pylist()
    assert label == ["0", "0"]  # the tench is ImageNet-1k's first


def test_unlisted_classes_are_refused_or_left_out_and_counted(tars, tmp_path, capsys):
    (tmp_path / "one.txt").write_text(FISH)
    source = ImageNet21k(str(tars), f"{tmp_path}/one.txt")
    with pytest.raises(
        ValueError, match=rf"1 of 2 that .*one.txt doesn't list, such as {BIRD} .at"
    ):
        source.samples()
    left = ImageNet21k(source.path, source.wnids, "leave").samples()
    assert set(left["name"].to_pylist()) == {FISH}
    said = capsys.readouterr().err
    assert (
        f"left out the classes, 1 of 2 that {tmp_path}/one.txt doesn't list, such as {BIRD}\n"
        in said
    )
    with pytest.raises(ValueError, match="unlisted=refuse or unlisted=leave, got unlisted=x"):
        ImageNet21k(source.path, source.wnids, "x").samples()
    (tmp_path / "one.txt").write_text(DOG)
    with pytest.raises(ValueError, match="expected samples from the source"):
        parse(f"imagenet21k path={tars} wnids={tmp_path}/one.txt unlisted=leave").samples()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{FISH}\n{BIRD}\n{FISH}\n", f"each wnid once in .*, got {FISH} twice"),
        (f"{FISH}\n\n{BIRD}\n", "a wnid .* of line 2 of .*wnids.txt, got ''"),
        ("tench\n", "of line 1 of .*wnids.txt, got 'tench'"),
    ],
)
def test_a_bad_list_is_named(tars, wnids, text, message):
    Path(wnids).write_text(text)
    with pytest.raises(ValueError, match=message):
        ImageNet21k(str(tars), wnids).samples()


@pytest.mark.parametrize(
    ("wnids", "message"),
    [
        ("timm:imagenet-5k", "wnids=timm: with a subset that timm lists, .* got 'imagenet-5k'"),
        ("gone.txt", "a text file .*, or timm:<subset>, as wnids=, got no file gone.txt"),
    ],
)
def test_a_missing_list_is_named(tars, wnids, message):
    with pytest.raises(ValueError, match=message):
        ImageNet21k(str(tars), wnids).samples()


def test_places_that_are_no_classes_are_refused(tmp_path, folders, tars, wnids, write_tar):
    def refused(path, message):
        with pytest.raises(ValueError, match=message):
            ImageNet21k(str(path), wnids).samples()

    refused(tmp_path / "gone", r"named by their wnids .* got '.*gone' among 1: unpack")
    refused(tmp_path / "gone*.tar", r"expected shards at '.*gone\*.tar', got none")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", r"named by their wnids .*empty, got none")
    refused(folders / FISH, rf"got '.*{FISH}_10.JPEG' among 2")
    (folders / "birds").mkdir()
    refused(folders, r"got '.*birds' among 3")
    (tars / DOG).mkdir()
    refused(tars, rf"class folders \(which must be local\) and no tars, got .*{DOG} among 3")
    refused(f"memory://w21/{FISH}", rf"expected class tars at memory.*, got .*{FISH} among 1")


def test_a_tar_of_tars_and_a_tar_with_labels_are_refused(tmp_path, wnids, write_tar):
    write_tar(tmp_path / "a" / f"{FISH}.tar", {f"{BIRD}.tar": b""})
    write_tar(tmp_path / "b" / f"{FISH}.tar", {"1.jpg": b"", "1.cls": b"3"})
    for name, got in (
        ("a", f"got {BIRD}.tar: unpack"),
        ("b", "got 1.jpg, 1.cls: .* source shards"),
    ):
        with pytest.raises(ValueError, match=f"nothing but images, .*{FISH}.tar, {got}"):
            ImageNet21k(str(tmp_path / name), wnids).samples()


def test_a_folder_that_can_not_be_read_is_an_error_not_an_empty_class(tmp_path, folders, wnids):
    source = ImageNet21k(f"{folders}/n*", wnids)
    assert len(source.samples()) == 5
    (tmp_path / FISH).touch()
    with pytest.raises(NotADirectoryError, match=FISH):
        ImageNet21k(f"{tmp_path}/n*", wnids).samples()


def test_only_headers_of_a_tar_are_read(tars, wnids, monkeypatch):
    asked = []
    scan = imagenet21k.scan
    monkeypatch.setattr(imagenet21k, "scan", lambda shard, *read: asked.append(read) or scan(shard))
    ImageNet21k(str(tars), wnids).samples()
    assert asked == [(), ()]


@given(count=st.integers(0, 40), val=st.integers(0, 6))
def test_a_class_gives_as_many_images_to_val_as_asked_if_it_has_more_than_twice_as_many(count, val):
    with TemporaryDirectory() as folder:
        (Path(folder) / FISH).mkdir()
        for number in range(count):
            (Path(folder) / FISH / f"{number:02}.JPEG").touch()
        (Path(folder) / ".wnids").write_text(FISH)
        source = ImageNet21k(folder, f"{folder}/.wnids", val=val)
        found = source.samples()["split"].to_pylist()
    if not val:
        assert found == [""] * count
        return
    taken = [place for place, split in enumerate(found) if split == "val"]
    assert len(taken) == (val if count > 2 * val else 0)
    assert found.count("train") == count - len(taken)
    gaps = [right - left for left, right in pairwise(taken)]
    assert not gaps or max(gaps) - min(gaps) <= 1
