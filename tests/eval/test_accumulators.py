"""Accumulators: batch by batch, the numbers of the functions."""

import pickle

import numpy as np
import pytest
import torch

from askance import metrics
from askance.eval import accumulators  # makes torchmetrics importable

from torchmetrics import MetricCollection  # isort: skip

RNG = np.random.default_rng(0)
N = 90
COLUMNS = {
    "uncertainty": torch.from_numpy(RNG.normal(size=N).round(1)),
    "hit": torch.from_numpy(RNG.random(N) < 0.7),
    "correct": torch.from_numpy(RNG.random(N) < 0.5),
    "embedding": torch.from_numpy(RNG.normal(size=(N, 4)).astype(np.float32)),
    "label": torch.from_numpy(RNG.integers(4, size=N)),
    "plain": torch.from_numpy(RNG.normal(size=N)),
    "cropped": torch.from_numpy(RNG.normal(size=N)),
    "fraction": torch.from_numpy(RNG.random(N)),
    "votes": torch.from_numpy(RNG.integers(3, size=(N, 3))),
}
FUNCTIONS = {
    "RAUROC": metrics.r_auroc,
    "AURC": metrics.aurc,
    "ExcessAURC": metrics.excess_aurc,
    "AUGRC": metrics.augrc,
    "RecallAt1": metrics.recall_at_1,
    "ClassificationAUROC": metrics.classification_auroc,
    "CropWinRate": metrics.crop_win_rate,
    "CropCorrelation": metrics.crop_correlation,
    "HumanCorrelation": metrics.human_correlation,
    "DiracAUROC": metrics.dirac_auroc,
}


def batches(size=32):
    for start in range(0, N, size):
        yield {name: column[start : start + size] for name, column in COLUMNS.items()}


def fed(metric):
    for batch in batches():
        metric.update(**{name: batch[name] for name in metric.names})
    return metric


@pytest.mark.parametrize("name", FUNCTIONS)
def test_batches_give_the_number_of_all_rows(name):
    metric = fed(getattr(metrics, name)())
    expected = FUNCTIONS[name](*(COLUMNS[column] for column in metric.names))
    found = metric.compute()
    assert (found.dtype, found.shape, found.item()) == (torch.float64, (), expected)
    assert metric.estimate().lower == expected.lower


def test_retrieval_r_auroc_searches_all_rows():
    hit = metrics.hits(COLUMNS["embedding"], COLUMNS["label"])
    expected = metrics.r_auroc(COLUMNS["uncertainty"].numpy(), hit)
    assert fed(metrics.RetrievalRAUROC()).compute().item() == expected


def test_a_mixture_is_told_apart_by_its_flag():
    new = torch.arange(N) % 2 == 1
    parts = {name: COLUMNS[name] for name in ("embedding", "label", "uncertainty")}
    known, others = ([column[rows] for column in parts.values()] for rows in (~new, new))
    mixed, ood = metrics.MixedRAUROC(), metrics.OODAUROC()
    for rows in torch.arange(N).split(32):
        mixed.update(*(column[rows] for column in parts.values()), new[rows])
        ood.update(parts["uncertainty"][rows], new[rows])
    assert mixed.compute().item() == metrics.mixed_r_auroc((*known,), (*others,))
    assert ood.compute().item() == metrics.ood_auroc(known[2], others[2])


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("AccuracyAtCoverage", metrics.accuracy_at_coverage),
        ("CoverageAtAccuracy", metrics.coverage_at_accuracy),
    ],
)
def test_a_point_of_the_curve_is_chosen_when_made(name, function):
    metric = fed(getattr(metrics, name)(0.75))
    assert metric.compute().item() == function(COLUMNS["uncertainty"], COLUMNS["hit"], 0.75)
    again = pickle.loads(pickle.dumps(metric))
    assert again.compute().item() == metric.compute().item()


def test_a_collection_takes_each_its_columns():
    collection = MetricCollection({name: getattr(metrics, name)() for name in FUNCTIONS})
    for batch in batches():
        collection.update(**batch)
    for name, value in collection.compute().items():
        assert value.item() == fed(getattr(metrics, name)()).compute().item()
    collection.reset()
    assert collection["RAUROC"].uncertainty == []


def test_forward_returns_the_batch_and_keeps_the_rows():
    metric = metrics.RAUROC()
    first, second, _ = ((batch["uncertainty"], batch["hit"]) for batch in batches())
    assert metric(*first).item() == metrics.r_auroc(*first)
    assert metric(*second).item() == metrics.r_auroc(*second)
    together = [torch.cat(columns) for columns in zip(first, second, strict=True)]
    assert metric.compute().item() == metrics.r_auroc(*together)


@pytest.mark.filterwarnings("ignore:The ``compute`` method")  # torchmetrics: before any update
def test_without_a_row_or_a_miss_it_is_nan_with_a_reason():
    metric = metrics.RAUROC()
    assert metric.compute().isnan()
    assert metric.estimate().reason == "no row"
    metric.update(torch.zeros(3), torch.ones(3, dtype=torch.bool))
    assert metric.compute().isnan()
    assert metric.estimate().reason == "no miss among 3 queries"


def test_states_from_other_processes_arrive_as_one_tensor():
    metric = fed(metrics.AURC())
    expected = metric.compute().item()
    metric.reset()
    metric.uncertainty, metric.hit = COLUMNS["uncertainty"], COLUMNS["hit"]
    metric._update_count = 1
    assert metric.compute().item() == expected
    assert set(metric._reductions.values()) == {accumulators.torch.cat} or all(
        reduce.__name__ == "dim_zero_cat" for reduce in metric._reductions.values()
    )


def test_a_metric_moves_copies_and_pickles_with_its_rows():
    metric = fed(metrics.RAUROC())
    expected = metric.compute().item()
    for again in (pickle.loads(pickle.dumps(metric)), metric.clone(), metric.to("cpu")):
        assert again.compute().item() == expected


def test_gradients_are_not_kept():
    metric = metrics.RAUROC()
    metric.update(torch.zeros(3, requires_grad=True), torch.tensor([True, False, True]))
    assert not metric.uncertainty[0].requires_grad


def test_a_batch_of_unequal_columns_is_refused_at_once():
    with pytest.raises(ValueError, match="one row per row of uncertainty in hit, got 2 rows and 3"):
        metrics.RAUROC().update(torch.zeros(3), torch.ones(2, dtype=torch.bool))
    with pytest.raises(
        ValueError, match=r"of shape \(n,\) in uncertainty, got float32 of shape \(\)"
    ):
        metrics.RAUROC().update(torch.tensor(0.5), torch.tensor(True))
    with pytest.raises(ValueError, match=r"expected booleans of shape \(n,\) in hit, got int64"):
        metrics.RAUROC().update(torch.zeros(3), torch.ones(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"expected booleans of shape \(n,\) in downstream, got"):
        metrics.OODAUROC().update(torch.zeros(3), torch.ones(3))


@pytest.mark.parametrize("name", ["AccuracyAtCoverage", "CoverageAtAccuracy"])
def test_a_point_that_is_not_on_the_curve_is_refused_when_made(name):
    with pytest.raises(ValueError, match=r"got -0\.5: pass a share"):
        getattr(metrics, name)(-0.5)


def test_an_estimate_is_of_the_rows_of_all_processes():
    def gathered(column, group):
        return [column, COLUMNS["hit" if column.dtype == torch.bool else "uncertainty"][32:]]

    metric = metrics.RAUROC(dist_sync_fn=gathered, distributed_available_fn=lambda: True)
    metric.update(COLUMNS["uncertainty"][:32], COLUMNS["hit"][:32])
    expected = metrics.r_auroc(COLUMNS["uncertainty"], COLUMNS["hit"])
    assert (metric.estimate(), metric.estimate().lower) == (expected, expected.lower)
    assert metric.compute().item() == expected
    assert len(metric.uncertainty[0]) == 32  # its own again
    metric.sync(dist_sync_fn=gathered)
    assert metric.estimate() == expected
