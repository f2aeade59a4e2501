import subprocess
import sys

import pyarrow as pa
import pytest

from askance.features.index import read_index
from askance.features.reader import image
from askance.stages.prepare import run


def photos(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def command(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "askance.stages.prepare", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_folder_becomes_a_set(tmp_path, capsys):
    root = photos(tmp_path / "my photos", "cat/1.png", "cat/2.jpg", "dog/1.webp")
    run(tmp_path / "set", [f'folder "path={root}"'])
    index = read_index(tmp_path / "set")
    assert index.classes == {0: "cat", 1: "dog"}
    assert sorted(zip(index.keys, index.labels.tolist(), strict=True)) == [
        ("cat/1", 0),
        ("cat/2", 0),
        ("dog/1", 1),
    ]
    images = {key: image(index, row) for row, key in enumerate(index.keys)}
    assert images == {"cat/1": b"cat/1.png", "cat/2": b"cat/2.jpg", "dog/1": b"dog/1.webp"}
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == [
        "index.parquet",
        "set-000000.tar",
    ]
    assert f"{tmp_path}/set: 3 images, 2 classes, 1 shards\n" in capsys.readouterr().out


def test_shards_stay_where_they_are(tmp_path, write_shard):
    path = write_shard(tmp_path / "shards" / "x.tar", ("b", 7), ("a", 3))
    run(tmp_path / "set", [f"shards path={path}"])
    assert [p.name for p in (tmp_path / "set").iterdir()] == ["index.parquet"]
    index = read_index(tmp_path / "set")
    assert index.keys == ["b", "a"]
    assert index.labels.tolist() == [7, 3]
    assert image(index, 1) == b"a"


def test_a_set_is_made_again_with_equal_bytes(tmp_path):
    root = photos(tmp_path / "photos", *(f"{name}/{n}.png" for name in "ab" for n in range(9)))
    contents = []
    for _ in range(2):
        run(tmp_path / "set", [f"folder path={root}"])
        contents.append({p.name: p.read_bytes() for p in (tmp_path / "set").iterdir()})
    assert contents[0] == contents[1]


def test_a_packed_set_is_a_source_of_shards(tmp_path):
    root = photos(tmp_path / "photos", "cat/1.png", "dog/1.png")
    run(tmp_path / "set", [f"folder path={root}"])
    run(tmp_path / "again", [f"shards path={tmp_path}/set/*.tar"])
    first, second = (read_index(tmp_path / name) for name in ("set", "again"))
    assert first.digest == second.digest
    assert second.labels.tolist() == first.labels.tolist()


def test_packed_and_shard_samples_share_a_set(tmp_path, write_shard, capsys):
    path = write_shard(tmp_path / "shards" / "x.tar", ("b", 7), ("a", 3))
    root = photos(tmp_path / "photos", "cat/1.png", "dog/1.png")
    run(tmp_path / "set", [f"shards path={path}", f"folder path={root}"])
    index = read_index(tmp_path / "set")
    images = {key: image(index, row) for row, key in enumerate(index.keys)}
    assert images == {
        "folder/cat/1": b"cat/1.png",
        "folder/dog/1": b"dog/1.png",
        "shards/b": b"b",
        "shards/a": b"a",
    }
    assert list(index.classes.values()) == ["folder/cat", "folder/dog", "shards/3", "shards/7"]
    assert "4 images, 4 classes, 2 shards" in capsys.readouterr().out


def test_a_failure_leaves_the_earlier_set(tmp_path, monkeypatch):
    root = photos(tmp_path / "photos", "cat/1.png")
    run(tmp_path / "set", [f"folder path={root}"])
    before = {p.name: p.read_bytes() for p in (tmp_path / "set").iterdir()}

    def interrupt(self, row):
        raise KeyboardInterrupt

    monkeypatch.setattr("askance.features.sources.folder.Folder.image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "set", [f"folder path={root}"])
    assert {p.name: p.read_bytes() for p in (tmp_path / "set").iterdir()} == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "set", "set.runs.jsonl"]


@pytest.mark.parametrize(
    "names", [["thesis.pdf"], ["x.tar"], ["index.parquet", "x.tar", "photos/1"]]
)
def test_a_folder_that_is_no_set_is_not_replaced(tmp_path, names):
    root = photos(tmp_path / "photos", "cat/1.png")
    photos(tmp_path / "home", *names)
    with pytest.raises(ValueError, match=r"a prepared set to replace, got .*home with '"):
        run(tmp_path / "home", [f"folder path={root}"])
    assert all((tmp_path / "home" / name).exists() for name in names)


def test_shards_inside_of_the_set_are_not_replaced(tmp_path, write_shard):
    run(tmp_path / "set", [f"folder path={photos(tmp_path / 'photos', 'cat/1.png')}"])
    path = write_shard(tmp_path / "set" / "x.tar", ("b", 7))
    with pytest.raises(ValueError, match=r"expected shards outside of the set's folder.*x.tar"):
        run(tmp_path / "set", [f"shards path={path}"])
    assert (tmp_path / "set" / "x.tar").exists()


def test_the_splits_are_counted(tmp_path, monkeypatch, capsys):
    table = pa.table(
        {"key": list("abc"), "class": ["1", "1", "2"], "split": ["train", "test", "train"]}
    )
    monkeypatch.setattr("askance.features.sources.digits.Digits.samples", lambda self: table)
    run(tmp_path / "set", ["digits"])
    assert "3 images, 2 classes, 1 shards, 1 test, 2 train" in capsys.readouterr().out


def test_the_command_takes_several_sources(tmp_path):
    root = photos(tmp_path / "photos", "cat/1.png", "dog/1.png")
    sources = [f"folder path={root} classes={name}" for name in ("cat", "dog")]
    done = command(str(tmp_path / "set"), "--source", sources[0], "--source", sources[1])
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}/set: 2 images, 2 classes, 1 shards\n")
    assert "pack: 2/2 images" in done.stderr


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("shards path=/nothing/*.tar", "expected shards at '/nothing/*.tar', got none: no file"),
        ("shards path=/nothing.tar", "[Errno 2] No such file or directory: '/nothing.tar'"),
        ("nothing", "expected one of the sources benthic, caltech101, cars, cifar10, "),
    ],
)
def test_bad_input_is_one_line_and_exit_code_1(tmp_path, source, line):
    done = command(str(tmp_path / "set"), "--source", source)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"askance: {line}")
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


def test_help_and_shards_do_without_torch(tmp_path, write_shard):
    path = write_shard(tmp_path / "x.tar", ("b", 7))
    code = (
        "import sys; from pathlib import Path; from askance.stages.prepare import run;"
        f"run(Path({str(tmp_path / 'set')!r}), ['shards path={path}']);"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
