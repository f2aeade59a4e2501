"""The sample of upstream images: who is held out, what scales come from, how heads are judged."""

import math

import numpy as np
import pytest
import torch

from askance.eval.ranks import auroc
from askance.eval.retrieval import neighbours
from askance.features.store import FeatureStore
from askance.heads.catalogue import find
from askance.heads.head import Setup
from askance.pipeline.seeding import hashed
from askance.stages import sample
from askance.stages.sample import Sample

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def features(tmp_path_factory, make_set, extract):
    """Return a store of 30 images of 3 classes, an augmented view before the plain one."""
    root = tmp_path_factory.mktemp("sample")
    data = make_set(root / "made", n=30)
    return FeatureStore.open(extract(data, root / "up.zarr", views=["augment", "plain"]))


def head(features, name):
    torch.manual_seed(0)
    dim = features.embedding("plain").shape[1]
    return find(name)(Setup(dim, 8, 2, torch.randn(3, dim), torch.zeros(3))).eval()


@pytest.mark.parametrize(("holdout", "most", "held"), [(0.11, 5000, 4), (0.5, 6, 6), (0.0, 6, 0)])
def test_the_first_by_the_hash_of_their_keys_are_held_out(
    features, monkeypatch, holdout, most, held
):
    monkeypatch.setattr(sample, "QUERIES", most)
    drawn = Sample.draw(features, holdout, CPU)
    assert drawn.queries == held
    np.testing.assert_array_equal(
        np.flatnonzero(drawn.held_out), np.sort(hashed(features.keys)[:held])
    )


def test_scale_and_gallery_are_plain_views_in_that_order(features, monkeypatch):
    monkeypatch.setattr(sample, "SCALE", 20)
    monkeypatch.setattr(sample, "GALLERY", 12)
    drawn, order = Sample.draw(features, 0.1, CPU), hashed(features.keys)
    np.testing.assert_array_equal(drawn.scale, features.embedding("plain")[order[:20]])
    np.testing.assert_array_equal(drawn.label, features.labels[order[:12]])


@pytest.mark.parametrize("name", ["norm", "infonce"])
def test_a_head_is_judged_by_its_own_neighbours_of_the_images_held_out(features, monkeypatch, name):
    monkeypatch.setattr(sample, "GALLERY", 24)
    drawn, judged = Sample.draw(features, 0.4, CPU), head(features, name)
    order = hashed(features.keys)[:24]
    embedding, label = torch.from_numpy(features.embedding("plain")), features.labels[order]
    with torch.inference_mode():
        searched = judged.representation(embedding[order]) if judged.mapped else embedding[order]
    hit = (label == label[neighbours(searched.numpy()).row])[:12]
    uncertainty = judged.uncertainty(embedding[order[:12]]).numpy()
    assert judged.mapped == (name == "infonce")
    assert drawn.r_auroc(judged) == pytest.approx(auroc(uncertainty, ~hit))


def test_without_images_held_out_nothing_is_known(features):
    assert math.isnan(Sample.draw(features, 0.0, CPU).r_auroc(head(features, "norm")))
