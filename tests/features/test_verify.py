"""The checks of a store by themselves, and the numerical contract that they rest on."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from askance.features.blocks import plan
from askance.features.classify import Classifier, scores
from askance.features.contract import (
    NARROWING,
    ROUNDING,
    allowed,
    distance,
    logit_bounds,
    score_bounds,
)
from askance.features.index import SCHEMA, Index
from askance.features.layout import Array, Layout
from askance.features.recompute import draw
from askance.features.verify import Told, check_accounts, check_files
from askance.features.writer import StoreWriter
from askance.pipeline.artifacts import read_sealed, write_sealed

BATCHES = (1, 3, 8, 16)


def index(folder, n=10):
    row = {"shard": "s0.tar", "offset": 512, "size": 1, "split": "", "votes": None}
    rows = [row | {"key": f"k{i}", "position": i, "label": i % 3} for i in range(n)]
    return Index(folder, pa.Table.from_pylist(rows, schema=SCHEMA), {}, {"s0.tar": "hash"})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    content = {"views": ["plain", "augment"]}
    layout = Layout({"embedding": Array((2, 3), "float32", (1, 3))}, 4, content)
    with StoreWriter(folder / "a.zarr", layout, index(folder)) as writer:
        for block in writer.blocks:
            values = np.full((len(block.rows), 2, 3), block.number, np.float32)
            writer.write(block, {"embedding": values}, {block.start: "no image"})
        writer.finish()
    return folder / "a.zarr"


def findings(store):
    return list(check_files(Told.read(store), lambda _: None))


@given(st.data())
def test_any_flipped_bit_of_any_file_is_found(store, data):
    files = sorted(p for p in store.rglob("*") if p.is_file())
    file = data.draw(st.sampled_from(files))
    whole = file.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(whole) - 1))
    file.write_bytes(bytes(x ^ (1 << bit % 8) * (i == bit // 8) for i, x in enumerate(whole)))
    try:
        found = findings(store)
    finally:
        file.write_bytes(whole)
    assert file.relative_to(store).as_posix() in {finding.file for finding in found}
    assert findings(store) == []


def test_every_file_of_a_store_is_read_once(store):
    read = []
    list(check_files(Told.read(store), read.append))
    sealed = [store / "status" / name for name in ("manifest.json", "account.json")]
    sealed += (store / "status" / "blocks").iterdir()
    sizes = [p.stat().st_size for p in store.rglob("*") if p.is_file() and p not in sealed]
    assert sorted(read) == sorted(sizes)


def test_an_index_of_another_set_is_not_this_stores(store):
    other = index(Path("set"), n=11)
    first, *_ = check_accounts(Told.read(store), other)
    assert str(first) == (
        "wrong: status/manifest.json: its fingerprint or index is not that of its content"
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"refused": {"4": "no image", "5": "no image"}},
            "tells of other refused rows than status",
        ),
        ({"files": {"status/c/1": ""}}, r"tells of ['status'], not of ['embedding', 'status']"),
    ],
)
def test_a_record_that_is_whole_but_not_of_its_arrays_is_told(store, tmp_path, change, message):
    shutil.copytree(store, tmp_path / "a.zarr")
    record = tmp_path / "a.zarr" / "status" / "blocks" / "00001.json"
    write_sealed(record, read_sealed(record) | change)
    told = Told.read(tmp_path / "a.zarr")
    found = [str(finding) for finding in check_accounts(told, index(store.parent))]
    assert f"wrong: status/blocks/00001.json: {message}" in found


@settings(max_examples=40)
@given(st.integers(1, 150), st.integers(1, 64), st.integers(1, 40), st.floats(0.001, 1))
def test_a_sample_is_of_whole_batches_and_always_the_same(rows, length, batch, share):
    table, blocks = index(Path("set"), rows), plan(rows, length)
    drawn = draw(table, "a", blocks, batch, share)
    found = [row for task in drawn for row in task.samples["row"].to_pylist()]
    assert len(found) == len(set(found)) >= min(rows, max(32, share * rows))
    for block in blocks:
        starts = {(row - block.start) // batch for row in found if row in block.rows}
        whole = [row for row in block.rows if (row - block.start) // batch in starts]
        assert whole == [row for row in found if row in block.rows]
    again = draw(table, "a", blocks, batch, share)
    assert [t.samples.equals(u.samples) for t, u in zip(drawn, again, strict=True)]


def test_another_fingerprint_draws_another_sample():
    table = index(Path("set"), 300)
    first, second = (
        [task.block.number for task in draw(table, name, plan(300, 8), 8, 0.1)] for name in "ab"
    )
    assert first != second


@given(arrays(np.float32, 20, elements=st.floats(-6e4, 6e4, width=32)))
def test_narrowing_keeps_its_bound(values):
    relative, absolute = NARROWING["float16"]
    off = np.abs(values.astype(np.float16).astype(np.float64) - values)
    assert (off <= relative * np.abs(values) + absolute).all()


def test_distance_is_relative_to_the_second_and_nan_is_never_near():
    a = np.array([[3.0, 4.0], [0.0, 0.0], [np.nan, 1.0]])
    b = np.array([[0.0, 5.0], [0.0, 0.0], [1.0, 1.0]])
    np.testing.assert_allclose(distance(a, b)[:2], [np.sqrt(10) / 5, 0])
    assert not distance(a, b)[2] <= 1e9


@given(
    st.integers(0, 2**32 - 1),
    st.integers(2, 40),
    st.integers(2, 60),
    st.sampled_from([1e-6, 1e-2, 1.0, 30.0]),
    st.sampled_from(["float16", "float32"]),
)
def test_scores_of_a_stored_embedding_keep_their_bounds(seed, d, c, scale, dtype):
    """Against float64 scores of the embedding before it was stored, and not a hundredfold wide."""
    random = np.random.default_rng(seed)
    embedding = (random.normal(size=(9, 2, d)) * scale).astype(np.float32)
    classifier = Classifier(
        random.normal(size=(c, d)).astype(np.float32), random.normal(size=c).astype(np.float32)
    )
    label = random.integers(c, size=9)
    kept = embedding.astype(dtype).astype(np.float32)
    logits = classifier.logits(kept)
    new = scores(logits, label)
    bounds = score_bounds(classifier, kept, logits, new["entropy"], dtype)
    exact = embedding.astype(np.float64) @ classifier.weight.T.astype(np.float64) + classifier.bias
    assert (np.abs(logits - exact) <= logit_bounds(classifier, kept, dtype)).all()
    before = scores(classifier.logits(embedding), label)
    for name, values in before.items():
        assert (np.abs(values.astype(np.float64) - new[name]) <= bounds[name]).all(), name
    if dtype == "float16" and scale == 1:
        assert (logit_bounds(classifier, kept, dtype) < 0.05 * np.sqrt(d)).all()


def embedded(checkpoint, precision, batch, threads=1):
    import torch

    from askance.features.backbone import load_backbone
    from askance.features.engine import Engine

    weights = str(checkpoint(img_size=32))
    backbone = load_backbone("test_vit", weights, 32, "own", precision)
    pixels = np.random.default_rng(0).integers(256, size=(32, 32, 32, 3), dtype=np.uint8)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        parts = [pixels[start : start + batch] for start in range(0, 32, batch)]
        return np.concatenate(list(Engine(backbone, batch).embed(parts)))
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_contract_holds_between_batches_and_threads(checkpoint, precision):
    """Equal bits from equal batches; less than is allowed from others."""
    reference = embedded(checkpoint, precision, 16)
    np.testing.assert_array_equal(embedded(checkpoint, precision, 16), reference)
    for batch in BATCHES:
        for threads in (1, 2):
            other = embedded(checkpoint, precision, batch, threads)
            assert (distance(other, reference) <= ROUNDING[precision]).all(), (batch, threads)


def test_bfloat16_is_near_float32_and_pictures_are_not_near_each_other(checkpoint):
    exact, rough = (embedded(checkpoint, precision, 16) for precision in ("float32", "bfloat16"))
    apart = distance(rough, exact)
    assert (apart > ROUNDING["float32"]).all(), "the limit of float32 tells the precisions apart"
    assert (apart <= 1.4e-1).all()
    limit = allowed(exact, "float16", "bfloat16", on_cpus=True)
    assert (distance(np.roll(rough, 1, axis=0), exact) > limit).all()
