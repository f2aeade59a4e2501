"""Laws, oracle, golden numbers and failures of the neighbour search."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from askance.eval import cosine, retrieval
from askance.eval.engines import fastest
from askance.eval.retrieval import drawn, neighbours

# A busy machine is no failure; faiss's threads make it slow there.
settings.register_profile("few", deadline=None, max_examples=40)
settings.load_profile("few")

BYTES = 128  # a row
GOLDEN = Path(__file__).parents[1] / "golden" / "eval.npz"


@st.composite
def coarse(draw):
    """Embeddings of few values: duplicates, scaled duplicates, zero vectors and ties abound."""
    shape = draw(st.integers(2, 30)), draw(st.integers(1, 4))
    return draw(arrays(np.float32, shape, elements=st.integers(-2, 2).map(float)))


def oracle(embedding):
    """Compare every pair, straight from the definition."""
    rows = embedding.astype(np.float64)
    norms = [math.sqrt(math.fsum(row * row)) or 1.0 for row in rows]
    found = []
    for i, a in enumerate(rows):
        cosine = [
            -math.inf if i == j else math.fsum(a * b) / (norms[i] * norms[j])
            for j, b in enumerate(rows)
        ]
        cosine = [min(1.0, value) for value in cosine]
        found.append((cosine.index(max(cosine)), max(cosine)))
    return [row for row, _ in found], [similarity for _, similarity in found]


def check(embedding):
    found = neighbours(embedding)
    row, similarity = oracle(embedding)
    np.testing.assert_array_equal(found.row, row)
    np.testing.assert_allclose(found.similarity, similarity, rtol=0, atol=1e-14)
    return found


@given(coarse())
def test_neighbours_equal_the_definition_with_ties_and_duplicates(embedding):
    check(embedding)


def test_neighbours_equal_the_definition_on_random_rows():
    rng = np.random.default_rng(0)
    check(rng.normal(size=(150, 33)).astype(np.float32))


def test_more_duplicates_than_candidates_are_settled_by_row_number():
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(120, 16)).astype(np.float32)
    twins = rng.permutation(120)[:40]
    embedding[twins] = embedding[twins[0]]
    found = check(embedding)
    first, second = np.sort(twins)[:2]
    others = np.setdiff1d(twins, first)
    assert found.row[first] == second
    assert set(found.row[others]) == {first}
    np.testing.assert_array_equal(found.similarity[twins], found.similarity[first])


@pytest.mark.parametrize("noise", [5e-4, 1e-5])
def test_differences_below_the_error_of_float32_are_seen(noise):
    rng = np.random.default_rng(0)
    centre = rng.normal(size=64)
    embedding = (centre + noise * rng.normal(size=(100, 64))).astype(np.float32)
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    score = unit @ unit.T - 2 * np.eye(100, dtype=np.float32)
    found = check(embedding)
    assert (score.argmax(axis=1) != found.row).sum() > 10, "float32 alone would do"


def test_similarity_stays_within_one():
    row = np.random.default_rng(0).normal(size=(1, 50)).astype(np.float32)
    found = neighbours(np.concatenate([row * (i + 1) for i in range(40)]))
    assert found.similarity.max() <= 1


@given(coarse())
def test_no_row_is_its_own_neighbour(embedding):
    assert (neighbours(embedding).row != np.arange(len(embedding))).all()


@given(coarse(), st.randoms(use_true_random=False))
def test_order_of_rows_changes_nothing_but_the_choice_among_ties(embedding, random):
    order = np.array(random.sample(range(len(embedding)), len(embedding)))
    found, moved = neighbours(embedding), neighbours(embedding[order])
    np.testing.assert_array_equal(moved.similarity, found.similarity[order])


def test_order_of_rows_changes_nothing_without_ties():
    rng = np.random.default_rng(1)
    embedding, order = rng.normal(size=(50, 8)).astype(np.float32), rng.permutation(50)
    found, moved = neighbours(embedding), neighbours(embedding[order])
    np.testing.assert_array_equal(order[moved.row], found.row[order])


@given(coarse(), st.integers(-20, 20))
def test_length_of_rows_does_not_matter(embedding, power):
    length = np.exp2(power * np.cos(np.arange(len(embedding))).round()).astype(np.float32)
    found, scaled = neighbours(embedding), neighbours(embedding * length[:, None])
    np.testing.assert_array_equal(scaled.row, found.row)
    np.testing.assert_array_equal(scaled.similarity, found.similarity)


@given(embedding=coarse())
def test_blocks_do_not_show(embedding):
    whole = neighbours(embedding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "PASSING", 8)
        patch.setattr(retrieval, "CELLS", 50)
        patch.setattr(retrieval, "NARROW", 1)
        cut = neighbours(embedding)
    np.testing.assert_array_equal(cut.row, whole.row)
    np.testing.assert_array_equal(cut.similarity, whole.similarity)


def test_zero_vectors_are_similar_to_nothing():
    found = neighbours(np.array([[1, 0], [-1, 0], [0, 0], [0, 0]], np.float32))
    np.testing.assert_array_equal(found.row, [2, 2, 0, 0])
    np.testing.assert_array_equal(found.similarity, 0)


@pytest.mark.parametrize("value", [1e-44, 3e38])
def test_extreme_lengths_neither_vanish_nor_overflow(value):
    found = neighbours(np.array([[value, value], [1, 0.5], [-1, 1]], np.float32))
    np.testing.assert_array_equal(found.row, [1, 0, 0])


@pytest.mark.parametrize("queries", [None, np.arange(100), np.arange(9000)])
def test_advance_counts_every_query(queries, monkeypatch):
    monkeypatch.setattr(retrieval, "CELLS", 2048 * 256)
    monkeypatch.setattr(retrieval, "PASSING", 1024 * 256)
    embedding, counts = np.random.default_rng(0).normal(size=(9000, 8)).astype(np.float32), []
    embedding[500:1000] = 0  # copies are not searched for, and count
    neighbours(embedding, counts.append, queries=queries)
    assert sum(counts) == (9000 if queries is None else len(queries))
    assert len(counts) > 5


PREFIXES = {"r1": ("correct", "recall")}
PREFIXES |= {f"val.soft.{s}": ("own_correct", "own_r1") for s in ("up", "down")}


@pytest.mark.parametrize("prefix", PREFIXES)
def test_retrieval_equals_the_published_program(prefix):
    golden = np.load(GOLDEN)
    correct, recall = (golden[f"{prefix}.{name}"] for name in PREFIXES[prefix])
    found = neighbours(golden[f"{prefix}.features"])
    hit = (labels := golden[f"{prefix}.targets"]) == labels[found.row]
    np.testing.assert_array_equal(hit, correct)
    np.testing.assert_allclose(hit.mean(), recall, rtol=1e-6)


@pytest.mark.parametrize("rows", [0, 1])
def test_a_lone_row_is_refused(rows):
    with pytest.raises(ValueError, match=f"at least two rows, got {rows}: a lone row has no"):
        neighbours(np.ones((rows, 3), np.float32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused(value):
    embedding = np.ones((9, 3), np.float32)
    embedding[[4, 7], 1] = value
    with pytest.raises(ValueError, match="NaN or infinity in 2 of 9 rows, the first is row 4"):
        neighbours(embedding)


class Recorded:
    """Rows on a disk, as it were: what is read of them is written down."""

    def __init__(self, embedding):
        self.embedding, self.shape, self.read = embedding, embedding.shape, []

    def __getitem__(self, rows):
        self.read.append(rows.stop - rows.start)
        return self.embedding[rows]


@pytest.fixture
def small_blocks(monkeypatch):
    for name, numbers in {"CELLS": 32_000, "PASSING": 8000, "NARROW": 1}.items():
        monkeypatch.setattr(retrieval, name, numbers)
    monkeypatch.setattr(cosine, "AT_ONCE", 8000)
    engine = fastest()
    engine.tile = 100
    return engine


def test_rows_on_disk_give_what_rows_in_memory_do(small_blocks, tmp_path):
    embedding = np.random.default_rng(0).normal(size=(3000, 8)).astype(np.float32)
    queries, gallery = np.arange(0, 3000, 7), np.r_[:500, 2000:2900:2]
    embedding.tofile(tmp_path / "rows")
    stored = zarr.create_array(tmp_path / "zarr", data=embedding, chunks=(256, 8))
    places = {
        "map": np.memmap(tmp_path / "rows", np.float32, "r", shape=embedding.shape),
        "zarr": stored,
        "records": Recorded(embedding),
    }
    for chosen in ({}, {"queries": queries}, {"queries": queries, "gallery": gallery}):
        whole = neighbours(embedding, **chosen)
        for rows in places.values():
            found = neighbours(rows, engine=small_blocks, **chosen)
            np.testing.assert_array_equal(found.row, whole.row)
            np.testing.assert_array_equal(found.similarity, whole.similarity)
    assert max(places["records"].read) <= 4000, "more was read at once than is to be kept"
    assert sum(places["records"].read) > 2 * 3000, "not from a disk"


PEAKS = """
import numpy as np
from pathlib import Path
from askance.eval.retrieval import neighbours

class Codes:
    def __init__(self, rows):
        self.shape = rows, 32
    def __getitem__(self, part):  # distinct signs, all of one length
        row = np.arange(part.start, part.stop, dtype=np.uint64)[:, None]
        bits = row * np.uint64(0x9E3779B97F4A7C15) >> np.arange(32, 64, dtype=np.uint64)
        return (2 * (bits & np.uint64(1)).astype(np.float16) - 1)

def resident(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024

for rows in (3000, 50_000, 250_000):
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again
    before = resident("VmRSS")
    neighbours(Codes(rows), queries=np.arange(64))
    print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peaks are Linux's")
def test_memory_is_bounded_beyond_some_bytes_a_row_where_all_are_equally_long():
    done = subprocess.run([sys.executable, "-c", PEAKS], check=True, capture_output=True, text=True)
    _, few, many = map(int, done.stdout.split())
    assert many - few < 200_000 * BYTES
    assert many < 150e6 + 250_000 * BYTES


@pytest.mark.parametrize("lengths", ["long", "short", "both"])
def test_float64_rows_may_have_any_length_of_float64(lengths):
    rng = np.random.default_rng(0)
    embedding = rng.normal(size=(60, 7))
    power = {"long": [1000], "short": [-1000], "both": [-1000, 0, 1000]}[lengths]
    found = neighbours(embedding)
    scaled = neighbours(embedding * np.exp2(rng.choice(power, (60, 1))))
    np.testing.assert_array_equal(scaled.row, found.row)
    np.testing.assert_array_equal(scaled.similarity, found.similarity)
    assert scaled.similarity.min() > 0.1


def test_float16_is_taken_as_it_is():
    embedding = np.random.default_rng(0).normal(size=(200, 5)).astype(np.float16)
    found, wide = neighbours(embedding), neighbours(embedding.astype(np.float32))
    np.testing.assert_array_equal(found.row, wide.row)
    np.testing.assert_array_equal(found.similarity, wide.similarity)


def test_rows_that_are_not_chosen_may_be_anything():
    embedding = np.eye(6, dtype=np.float32)
    embedding[3] = np.nan
    chosen = np.array([0, 1, 2, 4, 5])
    found = neighbours(embedding, queries=chosen, gallery=chosen)
    np.testing.assert_array_equal(found.row, [1, 0, 0, 0, 0])


def test_no_query_has_no_neighbour():
    assert len(neighbours(np.ones((3, 2), np.float32), queries=np.arange(0)).row) == 0


@pytest.mark.parametrize(
    ("rows", "got"),
    [([2, 1], "1 at place 1"), ([1, 1], "1 at place 1"), ([-1, 2], "-1 at"), ([1, 9], "9 at")],
)
def test_rows_that_are_not_there_or_not_ascending_are_refused(rows, got):
    with pytest.raises(ValueError, match=f"gallery ascending from 0 to 8, each once, got {got}"):
        neighbours(np.ones((9, 2), np.float32), gallery=np.array(rows))


def test_one_row_may_be_the_gallery_of_others_only():
    embedding = np.ones((9, 2), np.float32)
    found = neighbours(embedding, queries=np.array([1, 3]), gallery=np.array([2]))
    np.testing.assert_array_equal(found.row, 2)
    with pytest.raises(ValueError, match="expected at least two rows, got 1: a lone row"):
        neighbours(embedding, queries=np.array([1, 2]), gallery=np.array([2]))


def test_queries_drawn_by_lot_are_the_same_every_time_and_spread_evenly():
    rows = np.arange(0, 20_000, 2)
    some = drawn(rows, 1000, "set", 0)
    np.testing.assert_array_equal(some, drawn(rows, 1000, "set", 0))
    assert (np.diff(some) > 0).all()
    assert np.isin(some, rows).all()
    assert abs(some.mean() - rows.mean()) < 4 * rows.std() / 1000**0.5
    assert not np.array_equal(some, drawn(rows, 1000, "set", 1))
    np.testing.assert_array_equal(drawn(rows, 10**6, "set"), rows)
