"""Every engine names every pair that may be nearest, and so gives the same neighbours."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from askance.eval import engines, retrieval
from askance.eval.engines import Faiss, Tiles, fastest, margin, maxima
from askance.eval.retrieval import neighbours

CPU = {
    "faiss": Faiss,
    "float32": lambda: Tiles("cpu", torch.float32),
    "bfloat16": lambda: Tiles("cpu", torch.bfloat16),
}
GPU = {
    "float64": lambda: Tiles("cuda", torch.float64),
    "bfloat16": lambda: Tiles("cuda", torch.bfloat16),
}
ENGINES = [pytest.param(make, id=name) for name, make in CPU.items()] + [
    pytest.param(make, id=f"cuda-{name}", marks=pytest.mark.gpu) for name, make in GPU.items()
]
every_engine = pytest.mark.parametrize("make", ENGINES)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Cut even small sets into many blocks, which none fills."""
    monkeypatch.setattr(retrieval, "CELLS", 2000)
    monkeypatch.setattr(retrieval, "PASSING", 1000)
    monkeypatch.setattr(retrieval, "NARROW", 1)


def small(make, tile=37):
    engine = make()
    engine.tile = tile
    return engine


def rows(kind, n=150, d=24):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, d))
    match kind:
        case "ties":
            x = rng.integers(-1, 2, (n, 4))
        case "duplicates":
            x = x[rng.integers(0, n // 8, n)] * rng.choice([1, 1, 2], (n, 1))
        case "zeros":
            x[rng.random(n) < 0.3] = 0
        case "all zero":
            x *= 0
        case "all equal":
            x[:] = x[0]
        case "opposite":  # below zero all similarities but the row's own
            x = np.concatenate([np.eye(d), np.zeros((1, d))])[:n] - 1 / d
        case "near ties below bfloat16":
            x = x[rng.integers(0, n // 8, n)] + 1e-3 * x
        case "near ties below float32":
            x = x[rng.integers(0, n // 8, n)] + 3e-7 * x
        case "cone":
            x = 30 + x
        case "narrow cone":
            x = 3000 + x
        case "lengths":
            x *= 10.0 ** rng.integers(-40, 38, (n, 1))
    return x.astype(np.float32)


KINDS = [
    "random", "ties", "duplicates", "zeros", "all zero", "all equal", "opposite", "cone",
    "near ties below bfloat16", "near ties below float32", "narrow cone", "lengths",
]  # fmt: skip


def definition(x, queries, gallery):
    """Compare every pair in float64, first of equals; sums as short as the library's."""
    x = x.astype(np.float64)
    norm = np.sqrt((x * x).sum(1))
    norm[norm == 0] = 1
    cosine = np.stack([(x[q] * x[gallery]).sum(1) / (norm[q] * norm[gallery]) for q in queries])
    cosine = np.clip(cosine, -1, 1)
    cosine[queries[:, None] == gallery] = -np.inf
    best = cosine.argmax(1)
    return gallery[best], cosine[np.arange(len(queries)), best]


def check(found, x, queries=None, gallery=None):
    everything = np.arange(len(x))
    queries = everything if queries is None else queries
    gallery = everything if gallery is None else gallery
    row, similarity = definition(x, queries, gallery)
    np.testing.assert_array_equal(found.row, row)
    np.testing.assert_array_equal(found.similarity, similarity)


@every_engine
@pytest.mark.parametrize("kind", KINDS)
def test_every_engine_gives_the_neighbours_of_the_definition(make, kind):
    x = rows(kind)
    check(neighbours(x, engine=small(make)), x)


@every_engine
@pytest.mark.parametrize("kind", KINDS)
def test_subsets_search_and_are_searched_by_identity(make, kind):
    x = rows(kind)
    rng = np.random.default_rng(1)
    n = len(x)
    queries, gallery = (np.sort(rng.choice(n, n * 2 // 3, replace=False)) for _ in range(2))
    found = neighbours(x, queries=queries, gallery=gallery, engine=small(make))
    check(found, x, queries, gallery)
    assert (found.row != queries).all()
    own = neighbours(x, queries=queries, gallery=queries, engine=small(make))
    check(own, x, queries, queries)


@every_engine
@pytest.mark.parametrize("n", [2, 3, 36, 37, 38, 74, 75])
def test_sizes_around_those_of_tiles(make, n):
    x = rows("random", n, 3)
    check(neighbours(x, engine=small(make)), x)


@every_engine
def test_whole_tiles(make):
    x = rows("cone", 1100, 5)
    check(neighbours(x, engine=make()), x)


@given(st.integers(0, 2**32), st.sampled_from([1, 3, 40, 800]), st.floats(0, 30))
def test_products_stay_within_the_margin(seed, d, offset):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(40, d)) + offset
    x[0] = 0
    length = np.linalg.norm(x, axis=1, keepdims=True)
    true = x / np.where(length == 0, 1, length)
    unit = true.astype(np.float32)
    centre = unit.mean(axis=0)
    for make in (CPU["float32"], CPU["bfloat16"]):
        engine = make()
        first, second = engine.take(unit[:15], centre), engine.take(unit[15:], centre)
        product = engine._product(first.operand, second.turned).double().numpy()
        wrong = abs(product + first.shift - true[:15] @ true[15:].T)
        wrong -= torch.finfo(engine.precision).eps / 2 * abs(product)
        assert (wrong <= margin(first, second)[:, None]).all()
        assert margin(first, second).max() < (0.02 if engine.finer else 5e-4)


@given(st.integers(0, 2**32), st.sampled_from([torch.bfloat16, torch.float32, torch.float64]))
def test_maxima_by_whole_numbers_are_those_of_floats(seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    tile = torch.randn(20, 3, generator=generator).to(dtype)
    tile[torch.rand(20, 3, generator=generator) < 0.2] = -0.0
    tile[torch.rand(20, 3, generator=generator) < 0.2] = -torch.inf
    for axis in (0, 1):
        assert torch.equal(maxima(tile, axis), tile.amax(axis))
        assert torch.equal(maxima(tile.abs(), axis), tile.abs().amax(axis))


def test_what_bfloat16_cannot_tell_is_left_to_float32():
    x = rows("near ties below bfloat16", 300, 32)
    easy, hard = rows("random", 1100, 32), np.tile(x, (4, 1)) + 1e-4 * rows("random", 1200, 32)
    engine = Tiles("cpu", torch.bfloat16)
    assert neighbours(easy, engine=engine).certified == 1
    found = neighbours(hard.astype(np.float32), engine=small(lambda: engine, 40))
    assert found.certified < 0.9
    check(found, hard.astype(np.float32))


def test_finer_tiles_may_be_smaller():
    x = rows("near ties below float32", 150)
    engine = small(Faiss, 100)
    engine.near = 2
    engine.finer.tile = 40
    engine.finer.buffer = torch.empty(40**2)
    found = neighbours(x, engine=engine)
    assert found.certified < 0.9
    check(found, x)


def test_missing_faiss_names_the_extras_where_it_is_asked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ValueError, match=r"expected faiss.*askance\[cpu\], or askance\[gpu\]"):
        Faiss()
    assert neighbours(np.eye(3, dtype=np.float32)).row.tolist() == [1, 0, 0]


@pytest.mark.parametrize(("units", "precision"), [(True, torch.bfloat16), (False, torch.float32)])
def test_bfloat16_is_for_processors_that_multiply_it(monkeypatch, units, precision):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": units})
    assert fastest().precision == precision
    assert fastest("cpu:0").precision == precision
    assert engines.fastest("cpu").tile == 1024
