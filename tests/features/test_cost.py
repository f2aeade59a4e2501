"""What a store costs: the forecast equals the store, chunk by chunk and file by file."""

import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from askance.features.cost import (
    MANY_FILES,
    actual,
    cost,
    logits_bytes,
    reading,
    schema,
)
from askance.features.embed import Embedder
from askance.features.index import SCHEMA, read_index, write_index
from askance.features.layout import Array, Layout
from askance.features.recipe import Recipe
from askance.features.store import FeatureStore
from askance.features.views import View
from askance.features.writer import StoreWriter
from askance.pipeline.runs import Run, read_log


def on_disk(path):
    """Return the sizes of all files below a path."""
    return [file.stat().st_size for file in path.rglob("*") if file.is_file()]


def make_index(folder, n):
    rows = [
        {
            "key": f"k{i}",
            "shard": f"s{i % 2}.tar",
            "position": i,
            "offset": 1000 * i + 512,
            "size": 100,
            "label": i % 3,
            "split": "",
            "votes": None,
        }
        for i in range(n)
    ]
    contents = {"s0.tar": "hash 0", "s1.tar": "hash 1"}
    return write_index(folder, pa.Table.from_pylist(rows, schema=SCHEMA), {}, contents)


def index_bytes(folder):
    return (folder / "index.parquet").stat().st_size


def assert_equal(forecast, path):
    for array in forecast.arrays:
        chunks = on_disk(path / array.name / "c")
        assert chunks == [array.chunk_bytes] * array.files, array.name
        assert sum(chunks) == array.bytes
    assert forecast.files == len(on_disk(path))
    beside = sum(on_disk(path)) - sum(array.bytes for array in forecast.arrays)
    assert forecast.beside_bytes == pytest.approx(beside, rel=0.1)


@pytest.mark.parametrize(
    "options",
    [
        {"views": ("plain", "augment"), "dtype": "float32"},
        {"views": ("plain", "crop"), "dtype": "float16"},
        {"views": ("plain", "augment"), "classifier": "own", "logits": "top"},
        {"views": ("augment",) * 3, "classifier": "own", "logits": "full"},
    ],
)
def test_the_forecast_of_a_set_is_the_store_that_becomes_of_it(
    tmp_path, make_set, extract, checkpoint, options
):
    data, weights = make_set(tmp_path, n=70), str(checkpoint(img_size=32))
    fixed = {"backbone": "test_vit", "weights": weights, "size": 32, "batch": 8, "block": 16}
    options = {"dtype": "float16"} | options
    views = tuple(map(View, options["views"]))
    recipe = Recipe(device="cpu", **fixed | options | {"views": views})
    index = read_index(data)
    forecast = cost(Embedder.load(recipe).layout(index), len(index), index_bytes(data))
    path = extract(data, tmp_path / "a.zarr", **fixed | options)
    assert_equal(forecast, path)
    assert forecast.bytes == pytest.approx(sum(on_disk(path)), rel=0.05)


@given(
    rows=st.integers(1, 30),
    block=st.integers(5, 12),
    arrays=st.lists(
        st.tuples(
            st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), max_size=2),
            st.sampled_from(["float16", "float32", "int32", "uint8"]),
        ),
        min_size=1,
        max_size=3,
    ),
    wholes=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=2), max_size=2),
)
@settings(max_examples=10)
def test_the_forecast_of_any_layout_is_what_is_written(rows, block, arrays, wholes):
    schemas = {
        f"a{i}": Array(tuple(n for n, _ in sides), dtype, tuple(min(n, c) for n, c in sides))
        for i, (sides, dtype) in enumerate(arrays)
    }
    whole = {f"group/w{i}": np.ones(shape, np.float32) for i, shape in enumerate(wholes)}
    known = {"crop": np.ones(rows, np.float32)}
    layout = Layout(schemas, block, {"views": ["plain"]}, {"by": "a test"}, known, whole)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        index = make_index(folder, rows)
        with StoreWriter(folder / "a.zarr", layout, index) as writer:
            for part in writer.missing():
                shapes = {name: (len(part.rows), *a.row) for name, a in schemas.items()}
                ones = {n: np.ones(s, schemas[n].dtype) for n, s in shapes.items()}
                writer.write(part, ones, {})
            writer.finish()
        assert_equal(cost(layout, rows, index_bytes(folder)), folder / "a.zarr")


def test_what_is_read_is_counted_by_shard_and_extent(tmp_path, make_set, encode):
    """Blocks of 8 rows of shards of 10 cross two borders: 1 + 2 + 2 + 1 reads."""
    found = reading(read_index(make_set(tmp_path)), 8)
    assert found.shards == 3
    assert found.reads == 6
    assert found.image_bytes == sum(len(encode(i)) for i in range(25))
    assert found.image_bytes < found.read_bytes < 3 * found.image_bytes
    assert found.read_bytes / found.reads <= found.largest_read


def test_scattered_images_are_a_read_each(tmp_path):
    """Alternating shards: each read has an image's 100 bytes and its header's 512."""
    found = reading(make_index(tmp_path, 10), 4)
    assert (found.reads, found.read_bytes, found.largest_read) == (10, 6120, 612)


def layout_of(width, block, **options):
    recipe = Recipe((View.PLAIN,) * 2, "any", block=block, **options)
    return Layout(schema(recipe, width, 0), block, {})


@pytest.mark.parametrize(
    ("width", "block", "rows", "what"),
    [
        (64, 256, 1_000_000, "files, more than 10,000"),
        (384, 1024, 100_000, "chunks of embedding have 0.75 MiB, less than 1 MiB"),
        (1024, 65_536, 100_000, "chunks of embedding have 128.00 MiB, more than 64 MiB"),
    ],
)
def test_a_bad_block_is_warned_of_and_the_block_named_mends_it(width, block, rows, what):
    [warning] = [w for w in cost(layout_of(width, block), rows).warnings if what in w]
    better = int(warning.partition("--block ")[2].split()[0])
    mended = cost(layout_of(width, better), rows)
    assert not [w for w in mended.warnings if what[-12:] in w]
    assert mended.files <= MANY_FILES


def test_a_small_set_is_not_warned_of_its_small_chunks():
    assert cost(layout_of(384, 256), 1000).warnings == ()


def test_logits_take_what_a_hand_computes():
    """100 rows in 2 blocks of 64, 2 views, 1,000 classes: 2 B each, or 32 with 2 + 4 B."""
    recipe = Recipe((View.PLAIN, View.AUGMENT), "any", block=64)
    assert logits_bytes(recipe, 1000, 100) == {
        "none": 0,
        "top": 128 * 2 * 32 * 6,
        "full": 128 * 2 * 1000 * 2,
    }


def written(tmp_path, blocks, refused=()):
    layout = Layout({"embedding": Array((2, 3), "float32", (1, 3))}, 4, {})
    with StoreWriter(tmp_path / "a.zarr", layout, make_index(tmp_path, 10)) as writer:
        for block in writer.blocks[:blocks]:
            bad = {row: "no image" for row in block.rows if row in refused}
            writer.write(block, {"embedding": np.ones((len(block.rows), 2, 3))}, bad)
    return tmp_path / "a.zarr", cost(layout, 10, index_bytes(tmp_path))


def test_of_an_unfinished_store_rows_and_files_are_counted(tmp_path):
    store, forecast = written(tmp_path, blocks=2, refused=[5])
    found = actual(store)
    assert (found.written, found.refused, found.left) == (7, 1, 2)
    sizes = on_disk(store)
    assert (found.files, found.bytes) == (len(sizes), sum(sizes))
    # Missing: two chunks of the embedding, one of the status, a record, and the two of the end.
    assert forecast.files - found.files == 2 + 1 + 1 + 2
    assert (found.pictures, found.seconds) == (0, 0.0)


def test_runs_are_summed_unless_another_store_had_the_place(tmp_path):
    store, _ = written(tmp_path, blocks=3)
    made = FeatureStore(store).fingerprint
    for count, fingerprint in ((9, "another"), (16, made), (4, made)):
        about = {"fingerprint": fingerprint, "begun": count != 4}
        Run("extract").log(store, count, "pictures", **about)
    found, logged = actual(store), read_log(store)
    assert found.pictures == 20
    assert found.seconds == sum(run["seconds"] for run in logged[1:])
