"""Batches: every row once, pairs of views, the same steps from anywhere, whole or in windows."""

import itertools
import re
import time
from collections import Counter

import numpy as np
import pyarrow as pa
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from askance.features import batches
from askance.features.batches import Batches
from askance.features.embeddings import Embeddings
from askance.features.index import SCHEMA, write_index
from askance.features.layout import Array, Layout
from askance.features.store import FeatureStore
from askance.features.writer import StoreWriter

LABELS = np.array([3, 5, 9], np.int32)  # of the classifier's columns 0, 1, 2
N, LOST = 31, (2, 13, 14)
GOOD = {(i, v) for i in set(range(N)) - set(LOST) for v in (0, 1)}


def embeddings(n, views, dim=3):
    """Tell the row: image, view, and something random."""
    image, view = np.meshgrid(np.arange(n), np.arange(views), indexing="ij")
    random = np.random.default_rng(0).normal(size=(n, views, dim - 2))
    return np.concatenate([image[..., None], view[..., None], random], -1).astype(np.float32)


def write(path, name, array, values, block, content, index, refused, whole=None):
    writer = StoreWriter(path, Layout({name: array}, block, content, whole=whole or {}), index)
    with writer:
        for one in writer.missing():
            part, lost = values[one.start : one.stop].copy(), refused & set(one.rows)
            part[[row - one.start for row in lost]] = np.nan
            writer.write(one, {name: part}, dict.fromkeys(sorted(lost), "no image"))
        writer.finish()
    return FeatureStore.open(path)


def make(folder, n, views=("plain", "augment"), block=4, refused=(), dtype="float16", loss=None):
    """Write both stores: row (i, v) has the loss i + v / 8, and the label of the column i % 3."""
    row = {"shard": "s0.tar", "offset": 0, "size": 1, "split": "", "votes": None}
    label = LABELS[np.arange(n) % 3].tolist()
    rows = [row | {"key": f"k{i}", "position": i, "label": label[i]} for i in range(n)]
    index = write_index(folder, pa.Table.from_pylist(rows, schema=SCHEMA), {}, {"s0.tar": "hash"})
    values = embeddings(n, len(views))
    if loss is None:
        loss = values[..., 0] + values[..., 1] / 8
    array = Array(values.shape[1:], dtype, (1, values.shape[2]))
    content, refused = {"views": list(views)}, set(refused)
    up = write(folder / "up.zarr", "embedding", array, values, block, content, index, refused)
    content |= {"upstream": up.fingerprint}
    array, whole = Array((len(views),), "float32", (len(views),)), {"classifier/label": LABELS}
    probe = folder / "probe.zarr"
    return up, write(probe, "loss", array, loss, block, content, index, refused, whole)


def begin(stores, out=(), **options):
    features, losses = stores
    mask = np.isin(features.rows, list(out))
    defaults = {"batch": 8, "rows": True, "pairs": False, "held_out": mask, "seed": 0}
    return Batches(features, losses, **defaults | options)


def least(stores, **options):
    """Return the memory that two blocks and one read ahead take, as the error tells it."""
    with pytest.raises(ValueError, match="expected memory for two blocks") as error:
        begin(stores, memory=0, **options)
    return int(re.search(r"([\d,]+) bytes", str(error.value))[1].replace(",", ""))


def identity(rows):
    """Return (image, view) of each row of a batch."""
    return [tuple(map(int, row[:2])) for row in rows.embedding.float().tolist()]


def plain(steps):
    """Return steps as lists, so that == compares them."""
    parts = ([p and [x.tolist() for x in p] for p in (s.rows, s.pairs)] for s in steps)
    return list(parts)


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    """31 images, 3 refused, in 8 blocks of 4, the last of 3: 56 rows."""
    return make(tmp_path_factory.mktemp("batches"), N, refused=LOST)


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    """Three views: 18 images in 6 blocks of 3."""
    return make(tmp_path_factory.mktemp("three"), 18, views=("augment",) * 3, block=3)


@pytest.fixture(params=["in memory", "in windows"])
def memory(request, stores):
    return 2**30 if request.param == "in memory" else least(stores)


def test_in_memory_an_epoch_deals_every_row_once(stores):
    steps = list(begin(stores, batch=7).steps(0, 24))
    for epoch in range(3):
        seen = [row for step in steps[8 * epoch :][:8] for row in identity(step.rows)]
        assert len(seen) == 56
        assert set(seen) == GOOD
    assert identity(steps[0].rows) != identity(steps[8].rows)
    assert steps[0].blocks == tuple(range(8))


@pytest.mark.parametrize("batch", [1, 4, 5, 7])
def test_in_windows_only_what_fills_no_batch_is_dropped(stores, batch):
    made = begin(stores, batch=batch, memory=least(stores, batch=batch))
    assert (made.window, made.ahead) == (2, 1)
    for _, window in itertools.groupby(made.steps(0, 200 // batch), key=lambda step: step.blocks):
        window = list(window)
        seen = [row for step in window for row in identity(step.rows)]
        there = {(i, v) for i, v in GOOD if i // 4 in window[0].blocks}
        assert len(seen) == len(set(seen))
        assert set(seen) <= there
        if window[-1].number + 1 < 200 // batch:  # not cut off by the end
            assert len(there) - len(seen) == len(there) % batch


def test_in_windows_an_epoch_takes_every_block_once(stores):
    steps = begin(stores, batch=1, memory=least(stores, batch=1)).steps(0, 168)
    seen = [identity(step.rows)[0] for step in steps]
    assert [set(seen[start : start + 56]) for start in (0, 56, 112)] == [GOOD] * 3


def test_each_row_has_its_own_loss_and_column(stores, memory):
    for step in begin(stores, batch=6, memory=memory, pairs=True).steps(0, 20):
        for rows in (step.rows, step.pairs):
            image, view, _ = rows.embedding.unbind(1)
            torch.testing.assert_close(rows.loss, image + view / 8)
            torch.testing.assert_close(rows.column, image.long() % 3)
            assert rows.column.dtype == torch.int64
            assert rows.loss.dtype == rows.embedding.dtype == torch.float32


def test_neighbours_of_pairs_are_two_views_of_one_image_and_each_image_comes_once(stores, memory):
    made = begin(stores, rows=False, pairs=True, batch=2, memory=memory)
    steps = list(made.steps(0, 28))  # an epoch
    pairs = [identity(step.pairs) for step in steps]
    assert all(step.rows is None for step in steps)
    assert all(a[0] == b[0] and a[1] != b[1] for a, b in pairs)
    assert sorted(a[0] for a, _ in pairs) == sorted({i for i, _ in GOOD})
    assert {a[1] for a, _ in pairs} == {0, 1}


def test_with_three_views_images_go_round_again_and_all_pairs_of_views_come(three):
    made = begin(three, pairs=True, batch=6)
    steps = list(made.steps(0, 9 * 40))
    epoch = [identity(step.pairs) for step in steps[:9]]
    images = [a[0] for pairs in epoch for a, _ in zip(pairs[::2], pairs[1::2], strict=True)]
    assert len(images) == 27
    assert sorted(images[:18]) == list(range(18))
    assert len(set(images[18:])) == 9
    assert len({tuple(images[start : start + 9]) for start in (0, 9, 18)} | {tuple(range(9))}) == 4
    rows = [row for step in steps for row in identity(step.pairs)]
    views = Counter((a[1], b[1]) for a, b in zip(rows[::2], rows[1::2], strict=True))
    assert set(views) == {(a, b) for a in range(3) for b in range(3) if a != b}
    assert chisquare(list(views.values())).pvalue > 1e-3


@given(data=st.data())
def test_the_steps_are_the_same_wherever_one_begins(stores, three, data):
    both = data.draw(st.sampled_from([stores, three]))
    options = {"batch": data.draw(st.sampled_from([2, 4, 8])), "pairs": True}
    room = data.draw(st.integers(least(both, **options), least(both, **options) + 4000))
    memory = data.draw(st.sampled_from([2**30, room]))
    first = data.draw(st.integers(0, 40))
    last = data.draw(st.integers(first, 41))
    whole = list(begin(both, memory=memory, **options).steps(0, 41))
    part = list(begin(both, memory=memory, **options).steps(first, last))
    assert [step.number for step in part] == list(range(first, last))
    assert plain(part) == plain(whole[first:last])
    assert [s.blocks for s in part] == [s.blocks for s in whole[first:last]]


def test_another_seed_gives_another_order(stores, memory):
    orders = [plain(begin(stores, seed=s, memory=memory).steps(0, 3)) for s in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


@pytest.fixture
def reads(monkeypatch):
    """Count the readings of each (block, view)."""
    found, read = Counter(), Embeddings.read

    def counted(self, block, view, out):
        found[block, view] += 1
        read(self, block, view, out)

    monkeypatch.setattr(Embeddings, "read", counted)
    return found


def test_in_windows_each_block_is_read_once_an_epoch_for_rows_and_pairs_together(stores, reads):
    steps = begin(stores, batch=2, pairs=True, memory=least(stores, batch=2)).steps(0, 3 * 28)
    assert len(list(steps)) == 84
    assert reads == {(block, view): 3 for block in range(8) for view in range(2)}


def test_in_memory_each_block_is_read_once_in_all(stores, reads):
    made = begin(stores, pairs=True)
    for first in (0, 10):
        list(made.steps(first, first + 20))
    assert reads == {(block, view): 1 for block in range(8) for view in range(2)}


def test_no_block_of_an_earlier_window_or_of_a_later_one_is_read(stores, reads):
    memory = least(stores, batch=2)
    steps = list(begin(stores, batch=2, memory=memory).steps(0, 28))
    second = next(step for step in steps if step.blocks != steps[0].blocks)
    reads.clear()
    list(begin(stores, batch=2, memory=memory).steps(second.number, second.number + 1))
    assert {block for block, _ in reads} == set(second.blocks)


def test_whoever_stops_early_does_not_wait_for_what_was_to_be_read_ahead(tmp_path, monkeypatch):
    both = make(tmp_path, 31, block=1)
    made = begin(both, memory=least(both) + 3000)
    assert made.ahead > 10
    started, read = [], Embeddings.read

    def slow(*given):
        started.append(given)
        time.sleep(0.002)
        read(*given)

    monkeypatch.setattr(Embeddings, "read", slow)
    steps = made.steps(0, 10**6)
    next(steps)
    steps.close()
    assert len(started) < 2 * (made.window + 8)


def test_the_order_in_memory_is_uniform(tmp_path):
    steps = begin(make(tmp_path, 3, views=("plain",)), batch=3).steps(0, 1200)
    orders = Counter(tuple(image for image, _ in identity(step.rows)) for step in steps)
    assert len(orders) == 6
    assert chisquare(list(orders.values())).pvalue > 1e-3


def test_in_windows_neighbours_are_of_one_block_as_often_as_told_else_of_any_two(tmp_path):
    """Two of the 8 rows of a window: 3 of the other 7 are of the same block; 1 in 13 if uniform."""
    both = make(tmp_path, 40, views=("plain",))
    steps = begin(both, memory=least(both)).steps(0, 5 * 250)
    rows = [image // 4 for step in steps for image, _ in identity(step.rows)]
    meetings = list(zip(rows[::2], rows[1::2], strict=True))
    same = np.mean([a == b for a, b in meetings])
    assert same == pytest.approx(3 / 7, abs=4 * np.sqrt(12 / 49 / len(meetings)))
    different = Counter(frozenset(pair) for pair in meetings if len(set(pair)) == 2)
    # Four neighbours of a window are not independent of each other: hence one of each.
    once = Counter(frozenset(pair) for pair in meetings[::4] if len(set(pair)) == 2)
    assert len(different) == 45
    assert chisquare(list(once.values())).pvalue > 1e-3


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("room", ["in memory", "in windows"])
@pytest.mark.parametrize("numbers", [5, 1 << 18])
def test_embeddings_are_the_stored_ones_rounded_once(tmp_path, monkeypatch, dtype, room, numbers):
    both = make(tmp_path, 20, dtype=dtype)
    monkeypatch.setattr(
        "askance.features.embeddings.AT_A_TIME", numbers
    )  # several parts in a block, too
    stored = torch.from_numpy(both[0].read("embedding"))
    for wanted in (torch.bfloat16, torch.float32):
        memory = 2**30 if room == "in memory" else least(both, dtype=wanted)
        for step in begin(both, dtype=wanted, memory=memory).steps(0, 10):
            place = [
                (round(8 * loss) // 8, round(8 * loss) % 8) for loss in step.rows.loss.tolist()
            ]
            expected = torch.stack([stored[i, v] for i, v in place]).to(wanted)
            torch.testing.assert_close(step.rows.embedding, expected, rtol=0, atol=0)


@pytest.mark.parametrize("room", ["in memory", "in windows"])
def test_a_compressed_store_gives_the_same_steps(tmp_path, stores, room):
    both = make(tmp_path, N, refused=LOST)
    group = zarr.open_group(both[0].path)
    values = group["embedding"][:]
    del group["embedding"]
    options = {"shape": values.shape, "chunks": (4, 1, 3), "dtype": values.dtype}
    group.create_array("embedding", compressors=zarr.codecs.ZstdCodec(), **options)[...] = values
    assert group["embedding"].compressors
    both = FeatureStore.open(both[0].path), both[1]
    found, expected = (
        plain(begin(x, memory=least(x) if room == "in windows" else 2**30).steps(0, 20))
        for x in (both, stores)
    )
    assert found == expected


def test_held_out_images_are_in_no_step(stores, memory):
    out = (0, 7, 8, 30)
    made = begin(stores, out, pairs=True, batch=2, memory=memory)
    seen = {
        row for step in made.steps(0, 30) for p in (step.rows, step.pairs) for row in identity(p)
    }
    assert seen == {(i, v) for i, v in GOOD if i not in out}


def test_memory_that_is_told_to_do_does_and_a_byte_less_does_not(stores):
    enough = least(stores)
    assert begin(stores, memory=enough).ahead == 1
    with pytest.raises(ValueError, match="allow more, or extract with a smaller extract.block"):
        begin(stores, memory=enough - 1)


@given(st.integers(0, 20_000))
def test_more_memory_gives_larger_windows_up_to_all(stores, more):
    made = begin(stores, memory=least(stores) + more)
    rows, losses = (made.window + made.ahead) * 4 * 2, N * (2 * 4 + 8)
    assert rows * (3 * 2 + batches.PER_ROW) + losses <= least(stores) + more
    assert made.window >= 2
    assert made.window - made.ahead in ((0, 1) if made.ahead else (8,))


def refusal(message, both, **options):
    with pytest.raises(ValueError, match=message):
        list(begin(both, **options).steps(0, 20))


def test_a_store_without_losses_is_refused(stores):
    refusal(
        "expected an array 'loss_in_sample' in .*probe.zarr, got", stores, loss="loss_in_sample"
    )


def test_losses_of_another_store_are_refused(tmp_path, stores):
    other = make(tmp_path, N - 1, refused=LOST)
    refusal("expected the losses of .*up.zarr, got .*: run probe again", (stores[0], other[1]))


def test_losses_of_fewer_refused_images_are_refused(tmp_path, stores):
    """Images mended since: the same features by their fingerprint, but more rows."""
    mended, _ = make(tmp_path, N, refused=LOST[1:])
    assert mended.fingerprint == stores[0].fingerprint
    refusal("expected the losses of .*up.zarr, got .*: run probe again", (mended, stores[1]))


def test_pairs_of_one_view_are_refused_before_anything_is_read(tmp_path, reads):
    both = make(tmp_path, 20, views=("plain",))
    message = (
        r"expected two views .* got \('plain',\): extract with --views augment --views augment"
    )
    refusal(message, both, pairs=True)
    assert not reads


def test_an_odd_batch_of_pairs_is_refused(stores):
    refusal("expected an even batch, whose rows form pairs, got 7", stores, pairs=True, batch=7)


def test_fewer_rows_than_a_batch_are_refused(stores):
    refusal("expected at least train.batch=57 rows, got 56 in .*: lower it$", stores, batch=57)
    message = "expected at least train.batch=11 rows in any 2 blocks, got 10 in .* more memory"
    refusal(message, stores, batch=11, memory=least(stores))


def test_a_label_without_a_column_is_refused(tmp_path):
    both = make(tmp_path, 20)
    zarr.open_group(both[0].path)["label"][11] = -1
    again = FeatureStore.open(both[0].path), both[1]
    refusal("expected one of the 3 labels of .*, got -1 for k11 in .*: run probe again", again)


def test_a_constant_loss_is_refused(tmp_path):
    both = make(tmp_path, 20, loss=np.full((20, 2), 0.5, np.float32))
    refusal("expected losses that differ, got 0.5 in all rows of .*nothing to rank", both)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_is_refused_with_its_block(tmp_path, value):
    both = make(tmp_path, 20)
    zarr.open_group(both[1].path)["loss"][9, 1] = value
    message = (
        rf"expected finite losses, got .*{value}.* in block 2 of .*probe.zarr: verify the store"
    )
    refusal(message, both)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_embedding_that_is_not_finite_is_refused_with_its_block(tmp_path, value, dtype, memory):
    both = make(tmp_path, N, refused=LOST)
    zarr.open_group(both[0].path)["embedding"][15, 1, 2] = value
    message = f"expected finite embeddings, got {value} in block 3 of .*up.zarr: verify the store"
    refusal(message, both, dtype=dtype, memory=memory)


def test_a_file_that_is_cut_off_is_refused(tmp_path, memory):
    both = make(tmp_path, N, refused=LOST)
    file = both[0].path / "embedding" / "c" / "5" / "1" / "0"
    file.write_bytes(file.read_bytes()[:-2])
    refusal("expected 12 numbers in .*c/5/1/0, got fewer: verify the store", both, memory=memory)


@pytest.mark.gpu
@pytest.mark.parametrize("free", [2**40, 0])
def test_a_gpu_gets_the_batches_of_the_cpu(stores, memory, monkeypatch, free):
    options = {"pairs": True, "memory": memory, "dtype": torch.bfloat16}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free, free))
    made = begin(stores, device=torch.device("cuda"), **options)
    steps = list(made.steps(0, 20))
    assert all(part.is_cuda for step in steps for part in step.rows)
    assert plain(steps) == plain(begin(stores, **options).steps(0, 20))
