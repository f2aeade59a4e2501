"""Metrics of uncertainties, on numpy arrays and torch tensors.

Functions return `Estimate`s: floats that know their 95 % interval, or why they are undefined.
Classes are torchmetrics `Metric`s of the same numbers, fed batch by batch; they are imported when
first used. `published` has the functions as the published program computes them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from askance.eval import published
from askance.eval.estimates import Estimate
from askance.eval.intervals import Difference, compare, difference
from askance.eval.metrics import (
    classification_auroc,
    crop_correlation,
    crop_win_rate,
    dirac_auroc,
    hits,
    human_correlation,
    per_class,
    quantiles,
    r_auroc,
    recall_at_1,
)
from askance.eval.mixture import mixed_r_auroc, mixture, ood_auroc, union_label
from askance.eval.ranks import auroc
from askance.eval.selective import (
    accuracy_at_coverage,
    augrc,
    aurc,
    coverage_at_accuracy,
    excess_aurc,
    risk_coverage,
)

if TYPE_CHECKING:
    from askance.eval.accumulators import (
        AUGRC,
        AURC,
        OODAUROC,
        RAUROC,
        AccuracyAtCoverage,
        ClassificationAUROC,
        CoverageAtAccuracy,
        CropCorrelation,
        CropWinRate,
        DiracAUROC,
        ExcessAURC,
        HumanCorrelation,
        MixedRAUROC,
        RecallAt1,
        RetrievalRAUROC,
    )

__all__ = [
    "AUGRC",
    "AURC",
    "OODAUROC",
    "RAUROC",
    "AccuracyAtCoverage",
    "ClassificationAUROC",
    "CoverageAtAccuracy",
    "CropCorrelation",
    "CropWinRate",
    "Difference",
    "DiracAUROC",
    "Estimate",
    "ExcessAURC",
    "HumanCorrelation",
    "MixedRAUROC",
    "RecallAt1",
    "RetrievalRAUROC",
    "accuracy_at_coverage",
    "augrc",
    "aurc",
    "auroc",
    "classification_auroc",
    "compare",
    "coverage_at_accuracy",
    "crop_correlation",
    "crop_win_rate",
    "difference",
    "dirac_auroc",
    "excess_aurc",
    "hits",
    "human_correlation",
    "mixed_r_auroc",
    "mixture",
    "ood_auroc",
    "per_class",
    "published",
    "quantiles",
    "r_auroc",
    "recall_at_1",
    "risk_coverage",
    "union_label",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401
    if name not in __all__:
        raise AttributeError(f"module 'askance.metrics' has no attribute {name!r}")
    return getattr(import_module("askance.eval.accumulators"), name)


def __dir__() -> list[str]:
    return __all__
