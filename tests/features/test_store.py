"""The store: gives back what was written, survives kills, and never mixes two fingerprints."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from askance.features.blocks import plan
from askance.features.index import SCHEMA, write_index
from askance.features.layout import Array, Layout
from askance.features.store import ACCOUNT, BLOCKS, MANIFEST, FeatureStore
from askance.features.writer import StoreWriter
from askance.pipeline.artifacts import listing, read_sealed, sha256

CLASSES, CONTENTS = {0: "a", 1: "b", 2: "c"}, {"s0.tar": "hash 0", "s1.tar": "hash 1"}


def index(folder, n=10):
    rows = [
        {
            "key": f"k{i}",
            "shard": f"s{i % 2}.tar",
            "position": i,
            "offset": i,
            "size": 1,
            "label": i % 3,
            "split": "",
            "votes": None,
        }
        for i in range(n)
    ]
    return write_index(folder, pa.Table.from_pylist(rows, schema=SCHEMA), CLASSES, CONTENTS)


def layout(block=4, seed=0, dtype="float32"):
    content = {"views": ["plain", "augment"], "seed": seed, "mean": (0.5, 0.5)}
    return Layout({"embedding": Array((2, 3), dtype, (1, 3))}, block, content)


def values(block, seed=0):
    random = np.random.default_rng([seed, block.number])
    return {"embedding": random.normal(size=(len(block.rows), 2, 3)).astype(np.float32)}


def write_all(writer, refused=()):
    with writer:
        for block in writer.missing():
            arrays = values(block)
            bad = {row: "no image" for row in block.rows if row in refused}
            arrays["embedding"][[row - block.start for row in bad]] = np.nan
            writer.write(block, arrays, bad)
        return writer.finish()


def content(path):
    return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@given(st.integers(1, 200), st.integers(1, 50))
def test_blocks_cover_every_row_once(rows, block):
    blocks = plan(rows, block)
    assert [row for b in blocks for row in b.rows] == list(range(rows))
    assert all(len(b.rows) == block for b in blocks[:-1])


@pytest.mark.parametrize("block", [1, 3, 4, 10, 64])
def test_a_store_gives_back_what_was_written(tmp_path, block):
    writer = StoreWriter(tmp_path / "a.zarr", layout(block), index(tmp_path))
    write_all(writer)
    store = FeatureStore.open(tmp_path / "a.zarr")
    expected = np.concatenate([values(b)["embedding"] for b in plan(10, block)])
    np.testing.assert_array_equal(store.read("embedding"), expected)
    np.testing.assert_array_equal(store.embedding("augment"), expected[:, 1])
    np.testing.assert_array_equal(store.labels, np.arange(10) % 3)
    assert store.keys == [f"k{i}" for i in range(10)]


def test_notebooks_open_it_with_zarr_and_dask_and_see_nothing_else(tmp_path):
    import dask.array

    write_all(StoreWriter(tmp_path / "a.zarr", layout(), index(tmp_path)))
    group = zarr.open(tmp_path / "a.zarr", mode="r")
    assert sorted(name for name, _ in group.members()) == ["embedding", "label", "status"]
    lazy = dask.array.from_zarr(str(tmp_path / "a.zarr"), component="embedding")
    np.testing.assert_array_equal(lazy.max(axis=0).compute(), group["embedding"][:].max(axis=0))
    assert group["embedding"].compressors == ()
    assert group["embedding"].chunks == (4, 1, 3)


def test_a_store_opens_without_torch_or_a_hub(tmp_path):
    write_all(StoreWriter(tmp_path / "a.zarr", layout(), index(tmp_path)))
    code = "import sys, askance; print(askance.open_store(sys.argv[1]).keys[0])"
    code += "; sys.exit(any(name in sys.modules for name in ('torch', 'huggingface_hub')))"
    run = [sys.executable, "-c", code, str(tmp_path / "a.zarr")]
    done = subprocess.run(run, text=True, capture_output=True, check=True)
    assert done.stdout == "k0\n"


def test_an_unfinished_store_is_refused_with_what_is_left(tmp_path):
    with StoreWriter(tmp_path / "a.zarr", layout(), index(tmp_path)) as writer:
        writer.write(writer.missing()[0], values(writer.blocks[0]), {})
    with pytest.raises(ValueError, match="6 of 10 rows not done: run extract again"):
        FeatureStore.open(tmp_path / "a.zarr")
    with pytest.raises(ValueError, match="expected a store of format askance-features/1 at .*none"):
        FeatureStore.open(tmp_path / "nothing.zarr")


def test_a_resumed_store_equals_an_unbroken_one_byte_for_byte(tmp_path):
    rows = index(tmp_path)
    write_all(StoreWriter(tmp_path / "whole" / "a.zarr", layout(), rows))
    with StoreWriter(tmp_path / "broken" / "a.zarr", layout(), rows) as broken:
        broken.write(broken.blocks[1], values(broken.blocks[1]), {})
    # Killed while block 0 was being written: its arrays are there, its record is not.
    group = zarr.open_group(broken.path)
    group["embedding"][0:4] = 7
    litter = broken.path / "embedding" / "c" / "0" / "0" / "x.partial"
    litter.write_bytes(b"half a chunk")
    with StoreWriter(broken.path, layout(), rows) as again:
        assert again.message == f"{broken.path}: continuing"
        assert [b.number for b in again.missing()] == [0, 2]
        assert not litter.exists()
    write_all(again)
    assert content(tmp_path / "broken") == content(tmp_path / "whole")


def test_another_fingerprint_sets_the_old_store_aside_and_takes_it_back(tmp_path):
    path, rows = tmp_path / "a.zarr", index(tmp_path)
    write_all(StoreWriter(path, layout(seed=0), rows))
    old = content(path)
    other = StoreWriter(path, layout(seed=1), rows)
    write_all(other)
    set_aside = f"{path}: seed changed; the old store is set aside as a.zarr."
    assert other.message.startswith(set_aside)
    with StoreWriter(path, layout(seed=0), rows) as back:
        assert back.message.startswith(set_aside)
        assert "taken back a.zarr." in back.message
        assert back.missing() == []
    assert content(path) == old


def test_rows_written_and_refused_add_up_and_refusals_are_told(tmp_path):
    writer = StoreWriter(tmp_path / "a.zarr", layout(), index(tmp_path))
    refused = write_all(writer, refused={2, 9})
    assert refused.to_pylist() == [
        {"row": 2, "key": "k2", "shard": "s0.tar", "reason": "no image"},
        {"row": 9, "key": "k9", "shard": "s1.tar", "reason": "no image"},
    ]
    assert pq.read_table(tmp_path / "a.zarr" / "status" / "refused.parquet").equals(refused)
    store = FeatureStore.open(tmp_path / "a.zarr")
    np.testing.assert_array_equal(store.rows, [0, 1, 3, 4, 5, 6, 7, 8])
    assert np.isfinite(store.read("embedding")).all()


def test_some_rows_and_runs_of_rows_are_those_of_the_whole(tmp_path):
    writer = StoreWriter(tmp_path / "a.zarr", layout(), index(tmp_path))
    write_all(writer, refused={2, 9})
    store = FeatureStore.open(writer.path)
    whole, slices = store.read("embedding")[:, 1], store.slices("augment")
    places = np.array([7, 0, 3])
    np.testing.assert_array_equal(store.some("augment", places), whole[places])
    for part in (slice(0, 2), slice(1, 6), slice(3, 3), slice(5, 99)):
        np.testing.assert_array_equal(slices[part], whole[part])


def test_an_edition_changes_when_refused_rows_are_mended(tmp_path):
    writer = StoreWriter(tmp_path / "a.zarr", layout(), index(tmp_path))
    write_all(writer, refused={5, 6})
    before, block = FeatureStore.open(writer.path), writer.blocks[1]
    with writer:
        writer.mend(block, list(block.rows), values(block), {6: "no image"})
        writer.finish()
    after = FeatureStore.open(writer.path)
    assert (before.fingerprint, before.edition) == (after.fingerprint, f"{after.fingerprint}/8")
    assert after.edition == f"{after.fingerprint}/9"


def test_lost_rows_fail_the_accounts(tmp_path):
    writer = StoreWriter(tmp_path / "a.zarr", layout(), index(tmp_path))
    write_all(writer)
    zarr.open_group(writer.path)["status"][4] = 0
    with pytest.raises(
        ValueError, match=r"expected rows written \+ refused = rows .*s0.tar \(4 of 5\)"
    ):
        writer.finish()
    zarr.open_group(writer.path)["status"][4] = 2
    with pytest.raises(ValueError, match="expected 0 rows of status refused, got 1"):
        writer.finish()


def test_a_value_outside_float16_is_an_error_not_a_clip(tmp_path):
    writer = StoreWriter(tmp_path / "a.zarr", layout(dtype="float16"), index(tmp_path))
    arrays = values(writer.blocks[0])
    arrays["embedding"][1, 1, 1] = 70_000
    with (
        writer,
        pytest.raises(ValueError, match=r"embedding within the range of float16, got 70000.0"),
    ):
        writer.write(writer.blocks[0], arrays, {})
    assert len(writer.missing()) == 3


def test_one_block_has_one_writer(tmp_path):
    with StoreWriter(tmp_path / "a.zarr", layout(), index(tmp_path)) as writer:
        block = writer.blocks[0]
        writer.write(block, values(block), {})
        with pytest.raises(AssertionError, match="block 0 has two writers"):
            writer.write(block, values(block), {})


def test_one_store_has_one_writer(tmp_path):
    first, second = (StoreWriter(tmp_path / "a.zarr", layout(), index(tmp_path)) for _ in "ab")
    with (
        first,
        pytest.raises(ValueError, match="expected to be the only writer of .*a.zarr"),
        second,
    ):
        pass
    with second:
        assert second.message.endswith("continuing")


@pytest.mark.parametrize("block", [3, 4, 10, 64])
def test_the_hashes_told_are_those_of_the_files(tmp_path, block):
    """Every file of a finished store is told once, by the manifest, a record or the account."""
    path = tmp_path / "a.zarr"
    write_all(StoreWriter(path, layout(block), index(tmp_path)), refused={5})
    sealed = [path / MANIFEST, path / ACCOUNT, *(path / BLOCKS).iterdir()]
    told = [pair for file in sealed for pair in read_sealed(file)["files"].items()]
    real = {
        str(file.relative_to(path)): sha256(file)
        for file in path.rglob("*")
        if file.is_file() and file not in sealed
    }
    assert dict(told) == real
    assert len(told) == len(real)


def test_a_record_tells_rows_and_refusals(tmp_path):
    writer = StoreWriter(tmp_path / "a.zarr", layout(), index(tmp_path))
    write_all(writer, refused={5})
    record = read_sealed(writer.path / BLOCKS / "00001.json")
    assert record["rows"] == [4, 8]
    assert record["refused"] == {"5": "no image"}
    assert read_sealed(writer.path / ACCOUNT)["shards"] == {"s1.tar": [4, 1]}


def test_mending_changes_the_refused_rows_only(tmp_path):
    """Row 5 gets its values, row 6 stays refused, row 4 keeps what it had; 7 is not tried."""
    whole = write_to(tmp_path / "whole.zarr", tmp_path, refused={6, 7})
    mended = write_to(tmp_path / "a.zarr", tmp_path, refused={5, 6, 7})
    block = mended.blocks[1]
    again = values(block)["embedding"][:3]
    again[0], again[2] = 99, np.nan
    with mended:
        mended.mend(block, [4, 5, 6], {"embedding": again}, {6: "no image"})
        mended.finish()
    assert content(mended.path) == content(whole.path)


def write_to(path, folder, refused):
    writer = StoreWriter(path, layout(), index(folder))
    write_all(writer, refused)
    return writer


def test_a_wrong_view_or_array_names_those_there_are(tmp_path):
    write_all(StoreWriter(tmp_path / "a.zarr", layout(), index(tmp_path)))
    store = FeatureStore.open(tmp_path / "a.zarr")
    with pytest.raises(
        ValueError, match=r"expected one of the views \('plain', 'augment'\) .*'crop'"
    ):
        store.embedding("crop")
    with pytest.raises(ValueError, match="expected an array 'loss' in .*, got embedding, label"):
        store.read("loss")


def test_a_missing_array_is_refused_before_anything_is_written(tmp_path):
    writer = StoreWriter(tmp_path / "a.zarr", layout(), index(tmp_path))
    with writer, pytest.raises(ValueError, match=r"expected arrays of \{'embedding': .*, got \{\}"):
        writer.write(writer.blocks[0], {}, {})


def golden_store(folder):
    """Write a store whose every byte is fixed: no processor's rounding is in it."""
    layout = Layout(
        {"embedding": Array((2, 3), "float16", (1, 3)), "loss": Array((2,), "float32", (2,))},
        4,
        {"views": ["plain", "augment"], "seed": 0},
        known={"crop": np.linspace(0.1, 0.75, 10, dtype=np.float32)},
        whole={"classifier/bias": np.arange(3, dtype=np.float32)},
    )
    with StoreWriter(folder / "a.zarr", layout, index(folder)) as writer:
        for block in writer.missing():
            n = len(block.rows)
            embedding = np.arange(6 * n, dtype=np.float32).reshape(n, 2, 3) / 8
            refused = {5: "no image"} if 5 in block.rows else {}
            embedding[[row - block.start for row in refused]] = np.nan
            writer.write(block, {"embedding": embedding, "loss": embedding[..., 0]}, refused)
        writer.finish()
    return writer


def test_the_format_is_that_of_this_version(tmp_path):
    """Hashes of a run of ours (golden/store.json): where they change, so must FORMAT.

    Left out is what other libraries' versions may write differently: zarr.json and Parquet.
    """
    writer = golden_store(tmp_path)
    found = {
        name: sha256(writer.path / name)[:16]
        for name in sorted(listing(writer.path))
        if not name.endswith(("zarr.json", ".parquet", "manifest.json", "account.json"))
    }
    golden = json.loads((Path(__file__).parents[1] / "golden" / "store.json").read_text())
    assert {"fingerprint": writer.fingerprint[:16]} | found == golden
