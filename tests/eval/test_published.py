"""The published program's numbers, to the last printed digit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from askance.metrics import hits, published
from askance.pipeline.vision import import_torchvision

import_torchvision()  # before torchmetrics, which imports it

from torchmetrics.functional.classification import binary_auroc  # noqa: E402

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "eval.npz")


def part(name):
    prefix = f"val.soft.{name}."
    return {key.removeprefix(prefix): GOLDEN[key] for key in GOLDEN if key.startswith(prefix)}


def columns(golden):
    return golden["features"], golden["targets"], golden["unc"]


@pytest.mark.parametrize("name", ["up", "down"])
def test_a_whole_evaluation(name):
    golden = part(name)
    embedding, label, unc = columns(golden)
    result = {key.removeprefix("result."): golden[key] for key in golden if "result." in key}
    assert published.recall_at_1(embedding, label) == result["r1"]
    assert published.r_auroc(unc, hits(embedding, label)) == result["auroc_correct"]
    correct = golden["logits"].argmax(axis=1) == label
    assert published.classification_auroc(unc, correct) == result["auroc_classification"]
    spread = published.quantiles(unc)
    names = {"min": "min_unc", "max": "max_unc", "mean": "avg_unc"}
    for key, value in spread.items():
        theirs = result[names.get(key, f"unc_{key}")]
        np.testing.assert_allclose(value, theirs, rtol=1e-6)
    # That evaluation gave every crop the uncertainty of its image.
    assert published.crop_win_rate(unc, unc) == result["croppedHasBiggerUnc"]


def test_votes_mixture_and_new_images():
    up, down = part("up"), part("down")
    found = published.human_correlation(down["unc"], down["soft_counts"])
    assert found == down["result.rcorr_entropy"]
    rows = up["indices"][: len(down["indices"])], down["indices"]
    mixed = published.mixed_r_auroc(columns(up), columns(down), *rows)
    np.testing.assert_allclose(mixed, down["result.auroc_correct_mixed"], rtol=0, atol=1e-7)
    ood = published.ood_auroc(up["unc"][rows[0]], down["unc"][rows[1]])
    np.testing.assert_allclose(ood, down["result.auroc_ood"], rtol=0, atol=1e-7)


@pytest.mark.parametrize("case", ["ties", "all_correct", "none_correct", "large", "nan_on_wrong"])
def test_corner_cases_of_auroc(case):
    hit = GOLDEN[f"auroc.{case}.correct"].astype(bool)
    found = published.r_auroc(GOLDEN[f"auroc.{case}.unc"], hit)
    assert found == round(float(GOLDEN[f"auroc.{case}.torchmetrics_f32"]), 4)


def test_recall_and_auroc_with_a_lone_class():
    hit = hits(GOLDEN["r1.features"], GOLDEN["r1.targets"])
    np.testing.assert_array_equal(hit, GOLDEN["r1.correct"])
    found = published.recall_at_1(GOLDEN["r1.features"], GOLDEN["r1.targets"])
    assert found == round(float(GOLDEN["r1.recall"]), 4)
    found = published.r_auroc(GOLDEN["r1.unc"], hit)
    assert found == round(float(GOLDEN["r1.auroc_correct"]), 4)


@pytest.mark.parametrize("scale", [1e-9, 0.1, 10.0, 187.0])
def test_the_sigmoid_is_that_of_torchmetrics(scale):
    rng = np.random.default_rng(0)
    unc, hit = (scale * rng.normal(size=300)).astype(np.float32), rng.random(300) < 0.5
    theirs = binary_auroc(-torch.from_numpy(unc), torch.from_numpy(hit).int()).item()
    assert published.r_auroc(unc, hit) == pytest.approx(round(theirs, 4), abs=1e-4)
    unc = rng.random(300).astype(np.float32)  # inside 0 to 1, no sigmoid
    known, new = unc[:100], unc[100:]
    theirs = binary_auroc(torch.from_numpy(unc), (torch.arange(300) >= 100).int()).item()
    assert published.ood_auroc(known, new) == pytest.approx(theirs, abs=1e-6)


def test_labels_collide_where_the_first_rows_lack_the_largest():
    found = published.union_label(np.array([0, 1]), np.array([0, 0, 1, 2]))
    np.testing.assert_array_equal(found, [1, 2, 0, 0, 1, 2])


def test_crops_round_and_averages_are_of_what_is_given():
    plain = np.arange(3.0)
    assert published.crop_win_rate(plain, np.array([1.0, 1, 2])) == 0.3333
    assert published.crop_correlation(np.array([3.0, 1, 2]), np.array([0.1, 0.3, 0.2])) == 1
    assert published.average([0.00004, 0.00004]) == 0.00004  # such as `mixed_r_auroc`: not rounded
    assert published.average([0.1234, 0.1235]) == pytest.approx(0.12345)


def test_a_search_that_would_not_work_is_not_copied():
    row, label = np.ones((1, 2), np.float32), np.array([3])
    assert np.isnan(published.recall_at_1(row, label))
    with pytest.raises(ValueError, match="finite"):
        published.recall_at_1(np.array([[1.0, 0], [np.nan, 1]]), np.array([0, 0]))
    assert published.recall_at_1(np.zeros((20, 2)), np.zeros(20, int)) == 1
