"""CUB, CARS and SOP as their archives unpack, on small imitations: only names and numbers count."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.io import savemat

from askance.features.index import read_index
from askance.features.reader import image
from askance.features.sources import cars, cub, sop
from askance.features.sources.archive import check_whole
from askance.features.sources.cars import Cars
from askance.features.sources.class_halves import class_halves, splits_of_pool, splits_of_test
from askance.features.sources.cub import Cub
from askance.features.sources.listed import Listed
from askance.features.sources.selection import parse
from askance.features.sources.shards import Shards
from askance.features.sources.sop import Sop
from askance.stages.prepare import run

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "splits.npz")
BIRDS = ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross", "010.Wren"]
MODELS = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "FIAT 500 Abarth 2012"]
MODELS += ["Ram C-V Cargo Van Minivan 2012", "smart fortwo Convertible 2012"]


def splits(table):
    """Return {split: [keys]}."""
    found = {}
    for row in table.to_pylist():
        found.setdefault(row["split"], []).append(row["key"])
    return found


def files(root, names, count=4):
    """Write `count` images, whose bytes are their paths, into each folder."""
    for name in names:
        (root / name).mkdir(parents=True, exist_ok=True)
        for number in range(count):
            (root / name / f"{number}.jpg").write_bytes(f"{name}/{number}".encode())
    return root


# ---- the rule


@pytest.mark.parametrize("count", [2, 4, 5, 6, 10, 58, 68, 84])
def test_positions_of_a_class_are_the_original_programs(count):
    pool, halves = np.array(splits_of_pool(count)), np.array(splits_of_test(count, "halves"))
    for name, found in (("train", pool), ("val", pool), ("testontest", halves)):
        expected = GOLDEN[f"split.n{count}.{name}_idx"]
        np.testing.assert_array_equal(np.flatnonzero(found == name), expected)
    np.testing.assert_array_equal(np.flatnonzero(halves == "trainontest"), np.arange(0, count, 2))


@given(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=60))
def test_train_and_val_share_no_class_with_test_and_each_takes_half_of_a_class(classes):
    ordered = sorted(set(classes))
    whole, halves = (class_halves(classes, ordered, test) for test in ("whole", "halves"))
    pool = ordered[: len(ordered) // 2]
    for name in ordered:
        of_class = [s for c, s in zip(classes, whole, strict=True) if c == name]
        count = len(of_class)
        if name in pool:
            assert of_class.count("train") == count // 2
            assert of_class.count("val") == count - count // 2
        else:
            assert of_class == ["test"] * count
    for one, two in zip(whole, halves, strict=True):
        assert one == two or (one == "test" and two in ("trainontest", "testontest"))


def test_another_way_to_test_is_refused():
    with pytest.raises(ValueError, match="expected test=whole or test=halves, got test=both"):
        splits_of_test(3, "both")


# ---- cub


@pytest.fixture
def birds(monkeypatch):
    monkeypatch.setattr(cub, "CLASSES", 4)
    monkeypatch.setattr(cub, "IMAGES", 16)


@pytest.mark.parametrize("below", ["CUB_200_2011/images", "images", "."])
def test_cub_is_found_where_archives_put_it(tmp_path, birds, below):
    files(tmp_path / below, BIRDS)
    (tmp_path / below / BIRDS[0] / "._0.jpg").touch()  # of a Macintosh
    found = splits(Cub(str(tmp_path)).samples())
    assert found == {
        "train": [
            f"{name}/{n}"
            for name in ("001_Black_footed_Albatross", "002_Laysan_Albatross")
            for n in (0, 3)
        ],
        "val": [
            f"{name}/{n}"
            for name in ("001_Black_footed_Albatross", "002_Laysan_Albatross")
            for n in (1, 2)
        ],
        "test": [f"{name}/{n}" for name in ("003_Sooty_Albatross", "010_Wren") for n in range(4)],
    }


def test_cubs_classes_are_halved_by_number_not_by_name(tmp_path, birds):
    files(tmp_path, ["9.Nine", "10.Ten", "11.Eleven", "100.Hundred"])
    found = splits(Cub(str(tmp_path)).samples())
    assert {key.partition("_")[0] for key in found["test"]} == {"11", "100"}


def test_a_prepared_split_of_cub_has_its_images_and_names(tmp_path, birds):
    files(tmp_path / "images", BIRDS)
    line = f"cub path={tmp_path} test=halves split=testontest"
    run(tmp_path / "set", [line])
    index = read_index(tmp_path / "set")
    assert index.classes == {0: BIRDS[2], 1: BIRDS[3]}
    contents = {key: image(index, row).decode() for row, key in enumerate(index.keys)}
    assert contents == {
        "003_Sooty_Albatross/1": f"{BIRDS[2]}/1",
        "003_Sooty_Albatross/3": f"{BIRDS[2]}/3",
        "010_Wren/1": f"{BIRDS[3]}/1",
        "010_Wren/3": f"{BIRDS[3]}/3",
    }


def test_a_part_of_cub_is_refused(tmp_path, birds):
    files(tmp_path, BIRDS)
    (tmp_path / BIRDS[0] / "0.jpg").unlink()
    with pytest.raises(ValueError, match=r"16 images of 4 classes in .*, got 15 of 4: unpack"):
        Cub(str(tmp_path)).samples()


def test_cars_in_the_folder_of_cub_and_birds_in_that_of_cars_are_told(tmp_path):
    files(tmp_path / "cub200" / "images", MODELS)
    files(tmp_path / "cars196" / "images", BIRDS)
    with pytest.raises(ValueError, match=r"expected birds, .* got '[A-Zs].* 20.*: .*source cars"):
        Cub(str(tmp_path / "cub200")).samples()
    with pytest.raises(ValueError, match=r"expected cars, .* got '001.Black_.*: .*source cub$"):
        Cars(str(tmp_path / "cars196")).samples()


# ---- cars


@pytest.fixture
def models(monkeypatch):
    monkeypatch.setattr(cars, "CLASSES", 5)
    monkeypatch.setattr(cars, "IMAGES", 10)


ANNOTATED = [5, 4, 4, 2, 3, 1, 1, 2, 3, 5]  # classes of images 1 to 10, counted from 1
NAMES = [name.replace("C-V", "C/V") for name in MODELS]


def annotations(path, field, names, classes):
    kinds = [("bbox_x1", object), (field, object), ("class", object)]
    rows = np.array([(1, n, c) for n, c in zip(names, classes, strict=True)], dtype=kinds)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"annotations": rows[None], "class_names": np.array([NAMES], object)})


def one_folder(root):
    names = [f"car_ims/{n:06}.jpg" for n in range(1, 11)]
    annotations(root / "cars_annos.mat", "relative_im_path", names, ANNOTATED)
    return names


def devkit(root):
    names = [f"{n:05}.jpg" for n in (1, 2, 3, 4, 5)]
    test = root / "devkit" / "cars_test_annos_withlabels.mat"
    annotations(root / "devkit" / "cars_train_annos.mat", "fname", names, ANNOTATED[:5])
    annotations(test, "fname", names, ANNOTATED[5:])
    annotations(root / "devkit" / "cars_meta.mat", "fname", [], [])
    return [f"{part}/{name}" for part in ("cars_train", "cars_test") for name in names]


@pytest.mark.parametrize("layout", [one_folder, devkit])
def test_cars_get_their_classes_from_the_annotations(tmp_path, models, layout):
    names = layout(tmp_path)
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    source = Cars(str(tmp_path))
    rows = source.samples().to_pylist()
    assert [row["key"] for row in rows] == sorted(name[:-4] for name in names)
    for place, row in enumerate(rows):
        assert source.image(place) == ("jpg", f"{row['key']}.jpg".encode())
        number = ANNOTATED[names.index(f"{row['key']}.jpg")]
        assert row["class"] == MODELS[number - 1]
        assert (row["split"] == "test") == (number >= 3)
    assert [row["split"] for row in rows].count("train") == 2
    (tmp_path / names[3]).unlink()
    with pytest.raises(ValueError, match=rf"10 images that .*mat lists, got no .*{names[3]} \(1 m"):
        Cars(str(tmp_path)).samples()


def test_cars_in_class_folders_are_halved_by_name(tmp_path, models):
    files(tmp_path / "images", MODELS, 2)
    found = splits(Cars(str(tmp_path)).samples())
    assert found["train"] == [f"{name}/0" for name in MODELS[:2]]
    assert found["val"] == [f"{name}/1" for name in MODELS[:2]]
    assert len(found["test"]) == 6
    (tmp_path / "images" / MODELS[4] / "1.jpg").unlink()
    with pytest.raises(ValueError, match=r"10 images of 5 classes in .*, got 9 of 5"):
        Cars(str(tmp_path)).samples()


def test_annotations_that_can_not_be_read_or_are_missing_are_named(tmp_path):
    devkit(tmp_path)
    (tmp_path / "devkit" / "cars_test_annos_withlabels.mat").unlink()
    with pytest.raises(ValueError, match=r"cars_test_annos_withlabels.mat or .*official page is"):
        Cars(str(tmp_path)).samples()
    (tmp_path / "cars_annos.mat").write_bytes(b"no such format")
    with pytest.raises(ValueError, match=r"expected class_names in .*cars_annos.mat, got"):
        Cars(str(tmp_path)).samples()


# ---- sop

TRAIN = [(1, 1, "bicycle_final/10_0.JPG"), (1, 1, "bicycle_final/10_1.JPG")]
TRAIN += [(2, 1, "bicycle_final/11_0.JPG"), (3, 1, "bicycle_final/12_0.JPG")]
TRAIN += [(5, 2, "cabinet_final/22_0.JPG"), (4, 2, "cabinet_final/21_0.JPG")]
TEST = [(6, 1, "bicycle_final/13_0.JPG"), (7, 1, "bicycle_final/14_0.JPG")]
TEST += [(6, 1, "bicycle_final/13_1.JPG"), (6, 1, "bicycle_final/13_2.JPG")]


def products(lists, pictures):
    """Write the official lists and pictures."""
    lists.mkdir(parents=True, exist_ok=True)
    for name, rows in (("train", TRAIN), ("test", TEST)):
        lines = [f"{number} {c} {s} {file}" for number, (c, s, file) in enumerate(rows, 1)]
        (lists / f"Ebay_{name}.txt").write_text("\n".join([sop.HEADER, *lines, ""]))
        for _, _, file in rows:
            (pictures / file).parent.mkdir(parents=True, exist_ok=True)
            (pictures / file).write_bytes(file.encode())


@pytest.fixture
def shop(monkeypatch):
    monkeypatch.setattr(sop, "CLASSES", 7)
    monkeypatch.setattr(sop, "IMAGES", 10)


@pytest.mark.parametrize(
    ("lists", "pictures"),
    [
        ("Stanford_Online_Products", "Stanford_Online_Products"),
        (".", "."),
        ("Info_Files", "images"),
    ],
)
def test_sops_splits_are_the_official_ones_and_halves_of_each_category(
    tmp_path, shop, lists, pictures
):
    products(tmp_path / lists, tmp_path / pictures)
    source = Sop(str(tmp_path))
    rows = source.samples().to_pylist()
    found = [(row["key"].partition("/")[2], row["class"], row["split"]) for row in rows]
    assert found == [
        ("10_0", "0", "train"),  # of bicycles, one class of three
        ("10_1", "0", "train"),
        ("11_0", "1", "val"),
        ("12_0", "2", "val"),
        ("22_0", "4", "val"),
        ("21_0", "3", "train"),  # the smaller number, though it comes later
        ("13_0", "5", "test"),
        ("14_0", "6", "test"),
        ("13_1", "5", "test"),
        ("13_2", "5", "test"),
    ]
    assert (rows[0]["name"], rows[4]["name"]) == ("bicycle/10", "cabinet/22")
    assert source.image(4) == ("jpg", b"cabinet_final/22_0.JPG")


def test_sops_test_halves_take_turns_within_a_class(tmp_path, shop):
    products(tmp_path, tmp_path)
    found = splits(Sop(str(tmp_path), test="halves").samples())
    assert found["trainontest"] == [f"bicycle_final/{n}" for n in ("13_0", "14_0", "13_2")]
    assert found["testontest"] == ["bicycle_final/13_1"]


def test_prepared_products_keep_their_numbers_and_can_be_chosen_by_category(tmp_path, shop):
    products(tmp_path / "sop", tmp_path / "sop")
    run(tmp_path / "set", [f"sop path={tmp_path}/sop split=train,val classes=bicycle/*"])
    index = read_index(tmp_path / "set")
    assert index.classes == {0: "bicycle/10", 1: "bicycle/11", 2: "bicycle/12"}


def test_a_part_of_sop_is_refused(tmp_path, shop, monkeypatch):
    products(tmp_path, tmp_path)
    monkeypatch.setattr(sop, "IMAGES", 11)
    with pytest.raises(ValueError, match=r"11 images of 7 classes in .*, got 10 of 7"):
        Sop(str(tmp_path)).samples()
    (tmp_path / TRAIN[2][2]).unlink()
    with pytest.raises(ValueError, match=r"10 images that .* lists, got no .*11_0.JPG \(1 missing"):
        Sop(str(tmp_path)).samples()
    (tmp_path / "Ebay_test.txt").unlink()
    with pytest.raises(ValueError, match=r"expected the list .*Ebay_test.txt, got no such file"):
        Sop(str(tmp_path)).samples()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"expected the header 'image_id .*, got ''"),
        ("id path\n", r"expected the header 'image_id .*' in .*Ebay_test.txt, got 'id path'"),
        (f"{sop.HEADER}\n1 6 1 a.JPG\n2 x 1 b\n", r"in line 3 of .*test.txt, got '2 x 1 b'"),
        (f"{sop.HEADER}\n1 6 1\n", r"in line 2 of .*test.txt, got '1 6 1'"),
    ],
)
def test_a_bad_list_of_sop_is_named(tmp_path, shop, text, message):
    products(tmp_path, tmp_path)
    (tmp_path / "Ebay_test.txt").write_text(text)
    with pytest.raises(ValueError, match=message):
        Sop(str(tmp_path)).samples()


def test_lists_without_a_line_are_a_part_of_sop(tmp_path):
    for name in ("train", "test"):
        (tmp_path / f"Ebay_{name}.txt").write_text(sop.HEADER)
    with pytest.raises(ValueError, match=r"120,053 images of 22,634 classes in .*, got 0 of 0"):
        Sop(str(tmp_path)).samples()


def test_keys_of_listed_files_end_at_no_dot(tmp_path):
    files(tmp_path, ["a.b"], 1)
    (tmp_path / "c.1.JPG").touch()
    listed = Listed(tmp_path, ("a.b/0.jpg", "c.1.JPG"), ("1", "x.y"), tmp_path).samples()
    assert listed.to_pylist() == [{"key": "a_b/0", "class": "1"}, {"key": "c_1", "class": "x.y"}]


OUTSIDE = ["../secret.jpg", "a/../../secret.jpg", "..", "", "a/", "C:/secret.jpg", "..\\secret.jpg"]


@pytest.mark.parametrize("path", ["/secret.jpg", *OUTSIDE])
def test_a_listed_path_that_leaves_its_folder_is_refused(tmp_path, path):
    root = files(tmp_path / "root", ["a"], 1)
    (tmp_path / "secret.jpg").touch()
    path = f"{tmp_path}{path}" if path.startswith("/") else path
    with pytest.raises(ValueError, match=r"images below .*/root, got the path '.*' in the list x:"):
        Listed(root, ("a/0.jpg", path), ("1", "1"), Path("x"))


def test_a_link_in_a_folder_is_its_owner_s_and_followed(tmp_path):
    (tmp_path / "elsewhere").write_bytes(b"1")
    root = files(tmp_path / "root", ["a"], 0)
    (root / "a/0.jpg").symlink_to(tmp_path / "elsewhere")
    listed = Listed(root, ("a/0.jpg",), ("1",), root)
    assert (len(listed.samples()), listed.image(0)) == (1, ("jpg", b"1"))


def test_hostile_lists_of_sop_and_cars_are_refused(tmp_path):
    products(tmp_path, tmp_path)
    text = (tmp_path / "Ebay_test.txt").read_text()
    (tmp_path / "Ebay_test.txt").write_text(text.replace("bicycle_final/14_0", "../secret"))
    with pytest.raises(ValueError, match=r"got the path '\.\./secret.JPG' in the list "):
        Sop(str(tmp_path)).samples()
    annotations(tmp_path / "cars_annos.mat", "relative_im_path", ["/secret.jpg", "1.jpg"], [1, 2])
    with pytest.raises(ValueError, match=r"got the path '/secret.jpg' in the list .*annos.mat"):
        Cars(str(tmp_path)).samples()


def test_a_set_without_any_image_is_not_whole():
    with pytest.raises(ValueError, match=r"expected 2 images of 1 classes in x, got 0 of 0"):
        check_whole(pa.table({"class": []}), 1, 2, Path("x"))


# ---- as webdatasets


@pytest.mark.parametrize(
    ("folders", "label"),
    [(BIRDS, lambda name: name), (["9.a", "10.b", "11.c", "100.d"], lambda name: name[:-2])],
)
def test_shards_have_cubs_splits_by_the_rule(tmp_path, birds, write_shard, folders, label):
    listed = Cub(str(files(tmp_path / "images", folders))).samples()
    rows = [listed.to_pylist()[row] for row in np.random.default_rng(0).permutation(16)]
    for number in range(2):
        samples = [(row["key"], label(row["class"])) for row in rows[number::2]]
        write_shard(tmp_path / f"{number}.tar", *samples)
    line = f"shards path={tmp_path}/*.tar rule=class-halves"
    found = splits(parse(line).samples())
    assert {name: sorted(keys) for name, keys in found.items()} == splits(listed)
    run(tmp_path / "set", [f"{line} split=test"])
    assert sorted(read_index(tmp_path / "set").keys) == splits(listed)["test"]


def test_the_rule_halves_named_classes_by_the_alphabet(tmp_path, write_shard):
    path = write_shard(tmp_path / "x.tar", *((letter, letter) for letter in "hbjdiafceg"))
    listed = Shards(path, rule="class-halves").samples()
    tested = {row["class"] for row in listed.to_pylist() if row["split"] == "test"}
    assert tested == set("fghij")


def test_the_rule_takes_shards_without_samples_and_another_rule_is_refused(tmp_path, write_shard):
    path = write_shard(tmp_path / "x.tar")
    empty = Shards(path, rule="class-halves").samples()
    assert (len(empty), empty.schema.field("split").type) == (0, pa.string())
    with pytest.raises(ValueError, match="expected rule=class-halves, or no rule, got rule=cub"):
        Shards("gone.tar", rule="cub").samples()


# ---- archives that are not there


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        (Cub, r"CUB_200_2011.tgz from https://www.vision.caltech.edu/.*path="),
        (Cars, "the official page is gone .*path="),
        (Sop, r"Stanford_Online_Products.zip from https://cvgl.stanford.edu/.*path="),
    ],
)
def test_a_missing_archive_is_told_where_to_get(tmp_path, kind, told):
    with pytest.raises(ValueError, match=rf"expected .*gone.*, got no such folder: .*{told}"):
        kind(str(tmp_path / "gone")).samples()


def test_a_folder_without_sops_lists_is_told_so(tmp_path):
    with pytest.raises(ValueError, match=r"Ebay_train.txt, got .* without any of them: get"):
        Sop(str(tmp_path)).samples()
