import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askance.features.shards import scan
from askance.features.sources.folder import Folder
from askance.features.sources.selection import parse
from askance.features.sources.sets import label, pack, unite


def rows(table, *columns):
    return list(zip(*(table[column].to_pylist() for column in columns), strict=True))


def photos(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def test_one_source_keeps_its_keys_and_numbers(tmp_path, write_shard):
    path = write_shard(tmp_path / "x.tar", ("b", 30), ("a", 4))
    table, classes = label(unite([parse(f"shards path={path}")]))
    assert rows(table, "key", "label") == [("b", 30), ("a", 4)]
    assert classes == {}


def test_numbers_keep_the_names_that_a_file_gives(tmp_path, write_shard):
    path = write_shard(tmp_path / "x.tar", ("b", 30), ("a", 4))
    (tmp_path / "n.json").write_text('{"30": "crane", "4": "crane"}')
    line = f"shards path={path} names={tmp_path}/n.json classes=crane"
    table, classes = label(unite([parse(line)]))
    assert table["label"].to_pylist() == [30, 4]
    assert classes == {30: "crane", 4: "crane"}


def test_names_are_sorted_and_numbered(tmp_path):
    photos(tmp_path, "dog/1.png", "cat/1.png", "01/1.png")
    table, classes = label(unite([parse(f"folder path={tmp_path}")]))
    assert classes == {0: "01", 1: "cat", 2: "dog"}
    assert sorted(rows(table, "key", "label")) == [("01/1", 0), ("cat/1", 1), ("dog/1", 2)]


def test_several_sources_are_told_apart_by_prefix(tmp_path, write_shard):
    path = write_shard(tmp_path / "x.tar", ("b", 30), ("a", 4))
    photos(tmp_path / "p", "cat/1.png", "4/1.png")
    lines = [f"shards path={path}", f"folder path={tmp_path}/p prefix=mine"]
    table, classes = label(unite([parse(line) for line in lines]))
    assert classes == {0: "mine/4", 1: "mine/cat", 2: "shards/30", 3: "shards/4"}
    assert table["key"].to_pylist()[2:] == ["shards/b", "shards/a"]
    assert sorted(table["key"].to_pylist()[:2]) == ["mine/4/1", "mine/cat/1"]


def test_one_source_can_be_taken_twice_and_two_under_one_name_cannot(tmp_path):
    photos(tmp_path / "p", "cat/1.png", "dog/1.png")
    photos(tmp_path / "q", "cat/2.png")
    halves = [parse(f"folder path={tmp_path}/p classes={name}") for name in ("cat", "dog")]
    assert label(unite(halves))[1] == {0: "folder/cat", 1: "folder/dog"}
    mixed = [parse(f"folder path={tmp_path}/{name}") for name in "pq"]
    with pytest.raises(
        ValueError, match=r"one source under the name 'folder'.* give 'folder .*prefix"
    ):
        unite(mixed)


def test_two_samples_with_one_key_are_refused_with_both_places(tmp_path, write_shard):
    write_shard(tmp_path / "x-0.tar", ("a", 1), ("b", 1))
    write_shard(tmp_path / "x-1.tar", ("b", 1))
    pattern = r"key 'b': .*x-0.tar \(sample 1\) and .*x-1.tar \(sample 0\)"
    with pytest.raises(ValueError, match=pattern):
        unite([parse(f"shards path={tmp_path}/x-*.tar")])


def test_a_sample_that_two_lines_take_is_refused_with_both_lines(tmp_path):
    photos(tmp_path, "cat/1.png")
    lines = [f"folder path={tmp_path}", f"folder path={tmp_path} classes=c*"]
    with pytest.raises(ValueError, match=r"key 'folder/cat/1': 'folder .*' and 'folder .*c\*'"):
        unite([parse(line) for line in lines])


def test_a_filter_that_leaves_nothing_is_named(tmp_path):
    photos(tmp_path, "cat/1.png", "dog/1.png")
    other = next(n for n in (0, 1) if "cat" in folder_fold(tmp_path, n))
    line = f"folder path={tmp_path} classes=cat folds=2 fold={1 - other}"
    with pytest.raises(ValueError, match=r"source 'folder .*', got none .* the classes cat, dog$"):
        parse(line).samples()


def folder_fold(path, number):
    return parse(f"folder path={path} folds=2 fold={number}").samples()["class"].to_pylist()


def test_the_line_is_named_with_what_it_asks_for(tmp_path):
    photos(tmp_path, "cat/1.png")
    with pytest.raises(
        ValueError, match=r"a class like 'cow', got cat \(in the source 'folder .*'\)"
    ):
        parse(f"folder path={tmp_path} classes=cow").samples()


def test_votes_need_class_numbers(tmp_path, write_tar):
    path = write_tar(tmp_path / "x.tar", {"a.jpg": b"", "a.cls": b"cat", "a.votes": b"[1, 0]"})
    with pytest.raises(ValueError, match=r"expected votes only where classes are numbers .*'cat'"):
        label(unite([parse(f"shards path={path} votes=votes")]))


@given(names=st.sets(st.text("ab0-_é ", min_size=1, max_size=5).map(str.strip), min_size=1))
@settings(max_examples=20, deadline=None)
def test_packed_images_are_the_files_byte_for_byte(tmp_path_factory, names):
    root, folder = tmp_path_factory.mktemp("photos"), tmp_path_factory.mktemp("set")
    files = {f"c{len(name)}/{name}.png": name.encode() for name in names if name}
    photos(root, *files, "c0/last.jpg")
    selections = [parse(f"folder path={root}")]
    table, _ = label(unite(selections))
    index = pack(folder, "s", table, selections).to_pylist()
    assert [row["key"] for row in index] == table["key"].to_pylist()
    content = (folder / "s-000000.tar").read_bytes()
    for row in index:
        image = content[row["offset"] : row["offset"] + row["size"]].decode()
        assert image.rpartition(".")[0] == row["key"]
        assert row["shard"] == "s-000000.tar"
    labels = [m[0].content.decode() for _, m in scan(str(folder / "s-000000.tar"), {"cls"})]
    assert labels == [str(row["label"]) for row in index]


def test_rows_to_pack_are_shuffled_the_same_way_each_time(tmp_path):
    photos(tmp_path, *(f"{name}/{n}.png" for name in "ab" for n in range(20)))
    first = unite([parse(f"folder path={tmp_path}")])["key"].to_pylist()
    assert first == unite([parse(f"folder path={tmp_path}")])["key"].to_pylist()
    assert first != sorted(first)
    half = unite([parse(f"folder path={tmp_path} classes=a")])["key"].to_pylist()
    assert half == [key for key in first if key.startswith("a/")]


def test_an_image_that_can_not_be_made_is_named(tmp_path, monkeypatch):
    def fail(self, row):
        raise ValueError("no such colour")

    photos(tmp_path / "p", "cat/1.png")
    monkeypatch.setattr(Folder, "image", fail)
    selections = [parse(f"folder path={tmp_path}/p")]
    table, _ = label(unite(selections))
    pattern = r"an image for 'cat/1' of 'folder .*', got no such colour"
    with pytest.raises(ValueError, match=pattern):
        pack(tmp_path / "x", "x", table, selections)
