"""The stage on a tiny store: its table, its summary, its refusals."""

import os
import re
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from askance.eval import engines
from askance.eval.engines import fastest
from askance.features.index import write_index
from askance.features.layout import Array, Layout
from askance.features.store import BACKBONE
from askance.features.writer import StoreWriter
from askance.stages import mix
from askance.stages.retrieve import main, run

DEGREES = [0, 10, 14, 90, 97, 100]
LABELS = [5, 5, 6, 6, 7, 7]
REFUSED = 4


def prepare(path, classes):
    n = len(LABELS)
    columns = {"key": [f"k{i}" for i in range(n)], "shard": ["s"] * n, "position": range(n)}
    columns |= {"offset": range(n), "size": [1] * n, "label": LABELS, "split": [""] * n}
    table = pa.table({**columns, "votes": [None] * n})
    index = write_index(path.with_suffix(""), table, classes, {"s": path.stem})
    content = {"views": ["plain", "crop"]} | dict.fromkeys(BACKBONE, "a backbone's")
    layout = Layout({"embedding": Array((2, 2), "float16", (1, 2))}, 4, content)
    with StoreWriter(path, layout, index) as writer:
        return writer


def fill(writer):
    angle = np.deg2rad(DEGREES)
    embedding = np.stack([np.cos(angle), np.sin(angle)], axis=1)[:, None]
    embedding = np.concatenate([embedding, -embedding[::-1]], axis=1)
    embedding[REFUSED] = np.nan
    for block in writer.missing():
        refused = {REFUSED: "not an image"} if REFUSED in block.rows else {}
        writer.write(block, {"embedding": embedding[block.start : block.stop]}, refused)
    writer.finish()
    return writer.path


@pytest.fixture
def writer(tmp_path):
    return prepare(tmp_path / "set.zarr", {})


@pytest.fixture
def store(writer):
    return fill(writer)


def test_table_has_one_row_per_image_that_was_embedded(store, tmp_path, capsys):
    out = tmp_path / "neighbours" / "set.parquet"
    run(store, out)
    table = pq.read_table(out)
    assert table.schema.equals(
        pa.schema(
            [
                ("row", pa.int64()),
                ("key", pa.string()),
                ("label", pa.int32()),
                ("neighbour", pa.int64()),
                ("neighbour_key", pa.string()),
                ("similarity", pa.float64()),
                ("hit", pa.bool_()),
            ]
        )
    )
    found = table.to_pydict()
    assert found["row"] == [0, 1, 2, 3, 5]
    assert found["key"] == ["k0", "k1", "k2", "k3", "k5"]
    assert found["label"] == [5, 5, 6, 6, 7]
    assert found["neighbour"] == [1, 2, 1, 5, 3]
    assert found["neighbour_key"] == ["k1", "k2", "k1", "k5", "k3"]
    assert found["hit"] == [True, False, False, False, False]
    np.testing.assert_allclose(
        found["similarity"], np.cos(np.deg2rad([10, 4, 4, 10, 10])), rtol=0, atol=1e-3
    )
    assert re.search(r"set\.parquet: 5 queries, R@1 0\.2000, \d+\.\d s\n", capsys.readouterr().out)
    names = os.listdir(out.parent)  # noqa: PTH208 - hidden files too
    assert sorted(names) == ["set.parquet", "set.parquet.runs.jsonl"]


def test_another_view_gives_other_neighbours(store, tmp_path):
    run(store, tmp_path / "plain.parquet")
    run(store, tmp_path / "crop.parquet", "crop")
    plain, crop = (pq.read_table(tmp_path / f"{view}.parquet") for view in ("plain", "crop"))
    assert crop["neighbour"].to_pylist() == [1, 0, 1, 5, 3]
    assert crop["key"] == plain["key"]


def test_an_approximate_table_tells_its_recall(store, tmp_path, capsys):
    exact, near = tmp_path / "exact.parquet", tmp_path / "near.parquet"
    run(store, exact)
    run(store, near, lists=2)
    assert pq.read_table(near).equals(pq.read_table(exact))  # lists are two, and all looked into
    assert b"recall" not in pq.read_schema(exact).metadata
    about = pq.read_schema(near).metadata
    assert about[b"store"] == pq.read_schema(exact).metadata[b"store"]
    assert (about[b"lists"], about[b"recall"]) == (b"2", b"1 (0.5655 to 1)")
    assert "recall 1 (0.5655 to 1) with 2 lists" in capsys.readouterr().out


def test_retrieve_and_mix_search_on_the_device_that_was_asked_for(store, tmp_path, monkeypatch):
    used = []

    def recorded(name):
        engine = fastest(name)
        take = engine.take
        engine.take = lambda unit, centre: used.append(name) or take(unit, centre)
        return engine

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(engines, "fastest", recorded)
    new = fill(prepare(tmp_path / "new.zarr", {5: "new/oak"}))
    searches = [
        lambda device: run(store, tmp_path / "exact.parquet", device=device),
        lambda device: run(store, tmp_path / "near.parquet", device=device, lists=2),
        lambda device: mix.run(new, store, tmp_path / "mixed.parquet", device=device),
    ]
    for search in searches:
        for device, name in (("auto", "cpu"), ("cpu:0", "cpu:0")):
            used.clear()
            search(device)
            assert set(used) == {name}
        with pytest.raises(ValueError, match="expected the device 'lost', which was asked for"):
            search("lost")


def test_a_mixture_with_common_classes_or_of_a_store_with_itself_is_refused(store, tmp_path):
    out = tmp_path / "mixed.parquet"
    with pytest.raises(ValueError, match="expected new classes in .* got the same images of"):
        mix.run(store, store, out)
    known = fill(prepare(tmp_path / "known.zarr", {5: "known/oak", 6: "known/elm"}))
    new = fill(prepare(tmp_path / "new.zarr", {5: "new/ash", 7: "new/elm"}))
    with pytest.raises(ValueError, match=r"got \['elm'\] of .*known.zarr too, which would count"):
        mix.run(new, known, out)
    assert not out.exists()


def test_an_unknown_view_leaves_no_table(store, tmp_path, capsys):
    with pytest.raises(typer.Exit) as stopped:
        main(store, tmp_path / "out.parquet", "upside-down")
    assert stopped.value.exit_code == 1
    assert "got 'upside-down'" in capsys.readouterr().err
    assert not (tmp_path / "out.parquet").exists()


def test_an_unfinished_store_is_refused(writer, tmp_path, capsys):
    with pytest.raises(typer.Exit) as stopped:
        main(writer.path, tmp_path / "out.parquet")
    assert stopped.value.exit_code == 1
    assert "6 of 6 rows not done: run extract again" in capsys.readouterr().err


def test_help_comes_at_once_and_without_heavy_imports():
    code = (
        "import sys, askance.stages.retrieve;"
        "print([m for m in ('numpy', 'faiss', 'torch', 'zarr', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
