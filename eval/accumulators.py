"""Accumulators: the metrics as torchmetrics `Metric`s, fed batch by batch on any device.

Comes in: batches of tensors, (b,) or (b, d) each. Goes out: float64 tensors, the same numbers as
those of the functions on all rows at once. All rows are kept, and gathered from all processes.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from askance.eval import metrics, mixture, selective
from askance.eval.columns import columns as check
from askance.eval.estimates import Estimate
from askance.pipeline.vision import import_torchvision

import_torchvision()  # before torchmetrics, which imports it

from torchmetrics import Metric  # noqa: E402


class Accumulator(Metric):
    """A metric of columns, kept as lists of batches."""

    is_differentiable = False
    higher_is_better: bool | None = True
    full_state_update = False

    names: ClassVar[tuple[str, ...]] = ("uncertainty", "hit")
    function: Callable[..., Estimate]

    def __init__(self, **options: Any) -> None:  # noqa: ANN401 - torchmetrics' own
        super().__init__(**options)
        for name in self.names:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def _keep(self, *columns: Tensor) -> None:
        batch = dict(zip(self.names, columns, strict=True))
        # Types and shapes only: the values needn't leave their device for that.
        check(**{name: torch.empty_like(column, device="cpu") for name, column in batch.items()})
        for name, column in batch.items():
            getattr(self, name).append(column.detach())

    def estimate(self) -> Estimate:
        """Return the metric of all rows so far with its interval, or why it is undefined.

        Of the rows of all processes, which must all ask for it.
        """
        alone = not self._is_synced
        with self.sync_context(self.dist_sync_fn, should_sync=alone, should_unsync=alone):
            return self._estimate()

    def _estimate(self) -> Estimate:
        kept = [getattr(self, name) for name in self.names]
        if not all(map(len, kept)):
            return Estimate(math.nan, reason="no row")
        # Gathered from other processes, a state is one tensor.
        columns = [torch.cat(each) if isinstance(each, list) else each for each in kept]
        return self.function(*columns)

    def compute(self) -> Tensor:
        """Return the metric of all rows, a float64 scalar; NaN where undefined."""
        return torch.tensor(float(self._estimate()), dtype=torch.float64, device=self.device)


class RAUROC(Accumulator):
    """`askance.metrics.r_auroc` over batches."""

    function = staticmethod(metrics.r_auroc)

    def update(self, uncertainty: Tensor, hit: Tensor) -> None:
        """Take a batch: (b,) floats and (b,) booleans."""
        self._keep(uncertainty, hit)


class AURC(RAUROC):
    """`askance.metrics.aurc` over batches."""

    higher_is_better = False
    function = staticmethod(selective.aurc)


class ExcessAURC(RAUROC):
    """`askance.metrics.excess_aurc` over batches."""

    higher_is_better = False
    function = staticmethod(selective.excess_aurc)


class AUGRC(RAUROC):
    """`askance.metrics.augrc` over batches."""

    higher_is_better = False
    function = staticmethod(selective.augrc)


class AccuracyAtCoverage(RAUROC):
    """`askance.metrics.accuracy_at_coverage` over batches."""

    def __init__(self, coverage: float, **options: Any) -> None:  # noqa: ANN401
        selective.check_coverage(coverage)
        super().__init__(**options)
        self.function = partial(selective.accuracy_at_coverage, coverage=coverage)


class CoverageAtAccuracy(RAUROC):
    """`askance.metrics.coverage_at_accuracy` over batches."""

    def __init__(self, accuracy: float, **options: Any) -> None:  # noqa: ANN401
        selective.check_accuracy(accuracy)
        super().__init__(**options)
        self.function = partial(selective.coverage_at_accuracy, accuracy=accuracy)


class RecallAt1(Accumulator):
    """`askance.metrics.recall_at_1` over batches: every row searches all others at the end."""

    names = ("embedding", "label")
    function = staticmethod(metrics.recall_at_1)

    def update(self, embedding: Tensor, label: Tensor) -> None:
        """Take a batch: (b, d) floats and (b,) integers."""
        self._keep(embedding, label)


def _retrieval_r_auroc(embedding: Tensor, label: Tensor, uncertainty: Tensor) -> Estimate:
    if len(label) < 2:
        return Estimate(math.nan, reason="no other row to retrieve")
    return metrics.r_auroc(uncertainty.cpu(), torch.from_numpy(metrics.hits(embedding, label)))


class RetrievalRAUROC(Accumulator):
    """R-AUROC over batches of embeddings: every row searches all others at the end."""

    names = ("embedding", "label", "uncertainty")
    function = staticmethod(_retrieval_r_auroc)

    def update(self, embedding: Tensor, label: Tensor, uncertainty: Tensor) -> None:
        """Take a batch: (b, d) floats, (b,) integers and (b,) floats."""
        self._keep(embedding, label, uncertainty)


def _mixed_r_auroc(
    embedding: Tensor, label: Tensor, uncertainty: Tensor, downstream: Tensor
) -> Estimate:
    upstream, new = (
        (embedding[rows], label[rows], uncertainty[rows]) for rows in (~downstream, downstream)
    )
    return mixture.mixed_r_auroc(upstream, new)


class MixedRAUROC(Accumulator):
    """`askance.metrics.mixed_r_auroc` over batches of upstream and downstream rows."""

    names = ("embedding", "label", "uncertainty", "downstream")
    function = staticmethod(_mixed_r_auroc)

    def update(
        self, embedding: Tensor, label: Tensor, uncertainty: Tensor, downstream: Tensor
    ) -> None:
        """Take a batch: (b, d) floats, (b,) integers, (b,) floats and (b,) booleans."""
        self._keep(embedding, label, uncertainty, downstream)


def _ood_auroc(uncertainty: Tensor, downstream: Tensor) -> Estimate:
    return mixture.ood_auroc(uncertainty[~downstream], uncertainty[downstream])


class OODAUROC(Accumulator):
    """`askance.metrics.ood_auroc` over batches of upstream and downstream rows."""

    names = ("uncertainty", "downstream")
    function = staticmethod(_ood_auroc)

    def update(self, uncertainty: Tensor, downstream: Tensor) -> None:
        """Take a batch: (b,) floats and (b,) booleans."""
        self._keep(uncertainty, downstream)


class ClassificationAUROC(Accumulator):
    """`askance.metrics.classification_auroc` over batches."""

    names = ("uncertainty", "correct")
    function = staticmethod(metrics.classification_auroc)

    def update(self, uncertainty: Tensor, correct: Tensor) -> None:
        """Take a batch: (b,) floats and (b,) booleans."""
        self._keep(uncertainty, correct)


class CropWinRate(Accumulator):
    """`askance.metrics.crop_win_rate` over batches."""

    names = ("plain", "cropped")
    function = staticmethod(metrics.crop_win_rate)

    def update(self, plain: Tensor, cropped: Tensor) -> None:
        """Take a batch: (b,) floats each."""
        self._keep(plain, cropped)


class CropCorrelation(Accumulator):
    """`askance.metrics.crop_correlation` over batches."""

    names = ("cropped", "fraction")
    function = staticmethod(metrics.crop_correlation)

    def update(self, cropped: Tensor, fraction: Tensor) -> None:
        """Take a batch: (b,) floats each."""
        self._keep(cropped, fraction)


class HumanCorrelation(Accumulator):
    """`askance.metrics.human_correlation` over batches."""

    names = ("uncertainty", "votes")
    function = staticmethod(metrics.human_correlation)

    def update(self, uncertainty: Tensor, votes: Tensor) -> None:
        """Take a batch: (b,) floats and (b, c) counts."""
        self._keep(uncertainty, votes)


class DiracAUROC(HumanCorrelation):
    """`askance.metrics.dirac_auroc` over batches."""

    function = staticmethod(metrics.dirac_auroc)
