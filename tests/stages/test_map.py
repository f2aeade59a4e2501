"""The stage on tiny stores: its table, its lot, and what it refuses."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from askance.eval.retrieval import drawn
from askance.features.store import FeatureStore
from askance.pipeline.runs import read_costs
from askance.stages.map import main, run


@pytest.fixture(scope="module")
def store(tmp_path_factory, make_set, extract):
    root = tmp_path_factory.mktemp("map")
    return extract(make_set(root, n=25), root / "new.zarr", views=["plain", "crop"])


def test_the_table_has_a_point_for_every_image(store, tmp_path, capsys):
    out = tmp_path / "maps" / "new.parquet"
    run(store, out)
    table = pq.read_table(out)
    columns = [("row", pa.int64()), ("key", pa.string()), ("x", pa.float32()), ("y", pa.float32())]
    assert table.schema.equals(pa.schema(columns))
    assert table["row"].to_pylist() == list(range(25))
    assert table["key"].to_pylist() == [f"k{i:03}" for i in range(25)]
    about = {name.decode(): text.decode() for name, text in table.schema.metadata.items()}
    assert about["store"] == FeatureStore.open(store).edition
    assert (about["images"], about["seed"], about["perplexity"]) == ("25", "0", "8.0")
    assert f"trustworthiness {float(about['trustworthiness']):.3f}" in capsys.readouterr().out
    [cost] = read_costs(out.parent)
    assert (cost.stage, cost.name, cost.count, cost.unit) == ("map", "new", 25, "images")


def test_the_same_run_gives_the_same_file(store, tmp_path):
    for name in "ab":
        run(store, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_where_there_are_too_many_a_lot_of_the_queries_is_drawn(store, tmp_path):
    def rows(**options):
        run(store, tmp_path / "some.parquet", **options)
        return pq.read_table(tmp_path / "some.parquet")["row"].to_pylist()

    first, second = rows(limit=10), rows(limit=10, seed=1)
    assert len(first) == len(second) == 10
    assert first == sorted(first) != second
    asked = drawn(np.arange(25), 12).tolist()  # as retrieve draws them
    assert rows(queries=12) == asked
    assert set(rows(queries=12, limit=5)) < set(asked)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_set_of_few_images_has_a_map(make_set, extract, tmp_path, n):
    few = extract(make_set(tmp_path, n=n, classes=1), tmp_path / "few.zarr", views=["plain"])
    run(few, tmp_path / "few.parquet")
    points = pq.read_table(tmp_path / "few.parquet")
    assert len(points) == n
    assert np.isfinite([points["x"], points["y"]]).all()


def test_a_set_of_refused_images_is_refused_and_leaves_no_table(
    make_set, extract, tmp_path, capsys
):
    data = make_set(tmp_path, {"k0": (b"not an image", 0)})
    none = extract(data, tmp_path / "none.zarr", views=["plain"], refusals=1.0)
    with pytest.raises(typer.Exit) as stopped:
        main(none, tmp_path / "none.parquet")
    assert stopped.value.exit_code == 1
    assert "expected images in" in capsys.readouterr().err
    assert not (tmp_path / "none.parquet").exists()


def test_a_store_without_the_plain_view_is_refused(make_set, extract, tmp_path, capsys):
    crops = extract(make_set(tmp_path, n=4), tmp_path / "crops.zarr", views=["crop"])
    with pytest.raises(typer.Exit) as stopped:
        main(crops, tmp_path / "crops.parquet")
    assert stopped.value.exit_code == 1
    assert "got 'plain'" in capsys.readouterr().err
