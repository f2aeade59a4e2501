"""Heads on disk: what is saved is what is used, and nothing else is accepted."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from askance.heads.catalogue import HEADS
from askance.heads.checkpoint import SavedHead, load, quantiles, save
from askance.heads.head import Setup

BACKBONE = {
    "backbone": "test_vit",
    "weights": "ab" * 32,
    "preprocessing": {"size": 32},
    "precision": "float32",
}


def saved_head(name: str = "ranking") -> SavedHead:
    torch.manual_seed(1)
    setup = Setup(8, 8, 2, torch.randn(3, 8), torch.randn(3))
    head = HEADS[name](setup)
    scale = quantiles(head.uncertainty(torch.randn(500, 8)))
    return SavedHead(name, 3, head, scale, setup.sizes, BACKBONE, {"steps": 10})


@pytest.mark.parametrize("name", HEADS)
def test_a_head_read_back_gives_the_same_uncertainties(tmp_path, name):
    saved = saved_head(name)
    save(tmp_path / "head.safetensors", saved)
    back = load(tmp_path / "head.safetensors")
    embedding = torch.randn(20, 8)
    torch.testing.assert_close(back.head.uncertainty(embedding), saved.head.uncertainty(embedding))
    np.testing.assert_array_equal(back.quantiles, saved.quantiles)
    assert (back.name, back.seed, back.backbone, back.note) == (name, 3, BACKBONE, {"steps": 10})


def test_a_head_takes_float16_embeddings_as_they_are_stored():
    saved = saved_head()
    assert saved.head.uncertainty(torch.randn(4, 8).half()).dtype == torch.float32


@given(st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=50))
def test_percentile_never_falls_when_uncertainty_rises(values):
    saved = saved_head()
    percentile = saved.percentile(np.sort(values))
    assert (np.diff(percentile) >= 0).all()
    assert percentile.min() >= 0
    assert percentile.max() <= 1


def test_percentile_of_the_upstream_rows_is_their_rank():
    saved = saved_head()
    ranks = np.linspace(0, 1, 1001)
    np.testing.assert_allclose(saved.percentile(saved.quantiles), ranks, atol=1e-9)


def test_the_percentile_of_a_tie_is_its_middle():
    saved = saved_head()
    tied = np.concatenate([np.zeros(301), np.linspace(1, 2, 700)])
    tied = SavedHead(saved.name, 0, saved.head, tied, saved.sizes, BACKBONE, {})
    np.testing.assert_allclose(tied.percentile(np.array([-1.0, 0.0, 9.0])), [0, 0.15, 1])


def test_a_scale_of_infinite_uncertainties_is_refused():
    with pytest.raises(ValueError, match="expected finite uncertainties, got 1 of 2 others"):
        quantiles(torch.tensor([1.0, torch.inf]))


def test_a_head_whose_card_or_tensors_do_not_fit_is_refused(tmp_path):
    from safetensors.torch import save_file

    for card in ({}, {"head": "ranking", "dim": 8, "width": 8, "depth": 2}):
        text = json.dumps({"format": "askance-head/1", **card})
        save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors", metadata={"askance": text})
        with pytest.raises(ValueError, match="expected a whole head in .*x.safetensors"):
            load(tmp_path / "x.safetensors")


def test_embeddings_of_another_backbone_are_refused():
    saved = saved_head()
    saved.check_backbone(BACKBONE, "a.zarr")
    with pytest.raises(
        ValueError, match=r"got a.zarr \(weights: 'abab.*' against 'cd'\): extract again"
    ):
        saved.check_backbone(BACKBONE | {"weights": "cd"}, "a.zarr")


def test_a_cut_file_is_refused(tmp_path):
    saved = saved_head()
    path = tmp_path / "head.safetensors"
    save(path, saved)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="expected a head in .*, got a damaged file"):
        load(path)


def test_a_foreign_safetensors_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="expected a head of format askance-head/1"):
        load(tmp_path / "x.safetensors")


def test_a_missing_head_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.safetensors"):
        load(tmp_path / "nothing.safetensors")
